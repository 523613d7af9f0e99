"""The whole way of a small SigLIP 2 NaFlex, by the commands that a user types, over pictures of several shapes."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from PIL import Image
from randomized import SMALL, save_random
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

import regcache_jax as rc
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.models.export import load

SIDES = ((40, 40), (24, 90), (130, 33), (17, 64))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of pictures of several shapes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(16):
        height, width = SIDES[number % 4]
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        (folder / f"class{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"class{number % 2}" / f"{number}.png")
    return folder


@pytest.mark.slow
def test_a_naflex_goes_all_the_way_from_its_folder_to_int8_features(tmp_path, regcache, pictures):
    sizes = {**SMALL, "num_hidden_layers": 2}
    text = {**sizes, "vocab_size": 120, "max_position_embeddings": 9}
    towers = {"vision_config": {**sizes, "patch_size": 8, "num_patches": 16}, "text_config": text}
    source = save_random(transformers.Siglip2Model(transformers.Siglip2Config(**towers)), tmp_path / "source")
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=24).save_pretrained(source)
    model, plan, rounded = (tmp_path / name for name in ("model", "plan.safetensors", "int8"))
    data = ("--dataset", "folder", "--data-dir", pictures, "--batch-size", "8")
    steps = (
        ("convert", source, "--out", model, "--check"),
        ("inspect", model, *data, "--sensitivity-images", "2", "--picture", tmp_path / "inspect.svg"),
        ("search", model, *data, "--max-trials", "3", "--out", plan),
        ("quantize", model, *data, "--registers", plan, "--out", rounded),
        ("evaluate", model, rounded, *data, "--task", "knn", "--neighbours", "3"),
        ("evaluate", model, rounded, *data, "--task", "tower", "--json", tmp_path / "tower.json"),
        ("compare", model, *data, "--bits", "8", "--methods", "rtn", "--registers", plan, "--out", tmp_path / "compared"),
        ("embed", rounded, "--images", pictures, "--out", tmp_path / "features.npz"),
        ("embed", rounded, "--images", pictures, "--features", "patches", "--partition", "16", "--out", tmp_path / "set"),
        ("export", rounded, "--out", tmp_path / "int8.stablehlo", "--platforms", "cpu"),
    )  # fmt: skip
    for step in steps:
        status, _, error = regcache(*step)
        assert status == 0, (step[0], error)
    exact, int8 = (rc.load(path) for path in (model, rounded))
    sheets = np.stack([exact.preprocess(str(file)) for file in sorted(pictures.glob("*/*.png"))])
    assert sheets.shape == (16, 24, 65, 3) and len({int(sheet[:, -1, 0].sum()) for sheet in sheets}) > 1
    features = [encode_image(each.encoder, sheets) for each in (exact, int8)]
    assert float(jnp.sum(features[0] * features[1], -1).min()) > 0.99
    np.testing.assert_allclose(jax.jit(load(tmp_path / "int8.stablehlo"))(sheets), features[1], rtol=1e-2, atol=1e-2)
    assert json.loads((tmp_path / "int8.stablehlo.json").read_text())["input"]["shape"] == ["batch", 24, 65, 3]
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert [row["quantization"]["registers"] for row in compared] == [False, True]
    tower = json.loads((tmp_path / "tower.json").read_text())[1]
    assert 0 < tower["metrics"]["patch_error"] < 0.2
    sides = {(len(each["errors"]), len(each["errors"][0])) for each in tower["quantization"]["patch_error_maps"]}
    assert len(sides) > 1 and all(
        rows * columns <= 24 for rows, columns in sides
    )  # maps as wide and high as their pictures
    (patches,) = (np.load(file) for file in (tmp_path / "set").glob("img_emb/*.npy"))
    assert patches.shape == (16, 24, 48) and sorted((patches.any(-1)).sum(1)) == sorted(sheets[:, :, -1, 0].sum(1))
    status, _, error = regcache("evaluate", model, *data, "--task", "dense")
    assert status == 1 and "needs the same places in all pictures" in error
