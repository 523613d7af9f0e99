"""What version 0.1.0 wrote is read as it was: model folders, float and quantised, and a plan.

The folders hold every leaf that could stand beside kernels: twin ranges, zero points, a rotation, kernels left in float by
rules, token groups, products of attention, a head and a text tower in integers."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import encode_image, encode_text
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.models.folder import load, save
from regcache_jax.models.plan_file import check_plan, load_plan

FOLDERS = ("float", "float_dino", "twin", "offset", "group")


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).parent / "data" / "version_0_1_0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_old_folders_give_the_features_they_gave(old, name, tmp_path):
    recorded = np.load(old / "features.npz")
    encoder = load(old / name).encoder
    again = load(save(tmp_path / "again", encoder)).encoder
    for each in (encoder, again):
        # the same integers: what differs is the order of additions under other versions of the compiler
        np.testing.assert_allclose(encode_image(each, recorded["images"]), recorded[name], rtol=0, atol=1e-5)
        if f"{name}_text" in recorded:
            np.testing.assert_allclose(encode_text(each, recorded["ids"]), recorded[f"{name}_text"], rtol=0, atol=1e-5)


def test_an_old_plan_still_belongs_to_its_encoder(old):
    plan, metadata = load_plan(old / "plan.safetensors")
    assert plan.schedule().delete_count == 1 and float(plan.copies) == 2.5
    check_plan(old / "plan.safetensors", metadata, load(old / "float").encoder)
    assert metadata["encoder_hash"] == encoder_hash(load(old / "float").encoder)


@pytest.mark.parametrize(
    ("folder", "name", "leaf"),
    [
        ("float", "image/blocks/mlp/fc1/extra", ["float32", [2]]),
        ("twin", "image/blocks/input_scale/extra", ["float32", [2]]),
        ("twin", "image/blocks/mlp/fc1/float_kernel", ["float32", [1, 16, 32]]),
        ("group", "image/blocks/input_scale/qkv", ["float32", [2]]),
        ("float", "image/blocks/input_scale/qkv", ["float32", [2]]),
        ("twin", "image/blocks/mlp/fc1/kernel/values", ["float32", [2, 16, 32]]),
    ],
)
def test_the_loader_takes_exactly_the_leaves_that_spec_and_scheme_say(old, tmp_path, folder, name, leaf):
    description = json.loads((old / folder / "encoder.json").read_text())
    description["parameters"][name] = leaf
    shutil.copytree(old / folder, tmp_path / "model")
    (tmp_path / "model" / "encoder.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=f"does not fit its spec: .*{name}"):
        load(tmp_path / "model")
