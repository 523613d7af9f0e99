"""The whole way of a small random encoder of each newer family, by the commands that a user types."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import perception
import pytest
import torch
import transformers
from commands import DATA, KNN
from randomized import CLIP_TEXT, SMALL_IMAGE, save_random

import regcache_jax as rc
from regcache_jax.encoders.encoder import encode_image


def perception_encoder(folder, **options):
    torch.save(perception.drawn(**options), folder / "PE.pt")
    return (folder / "PE.pt",)


def metaclip2(folder):
    config = transformers.MetaClip2Config(
        vision_config=SMALL_IMAGE, text_config={**CLIP_TEXT, "eos_token_id": 2}, projection_dim=24
    )
    return save_random(transformers.MetaClip2Model(config), folder / "source"), "--check"


FAMILIES = {
    "PE Core": lambda folder: perception_encoder(folder, class_token=True, core=True, layer_scale=False),
    "PE Lang": lambda folder: perception_encoder(folder, class_token=False, core=False, layer_scale=True),
    "MetaCLIP 2": metaclip2,
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_all_the_way_from_its_file_to_a_figure_of_an_int8_encoder(tmp_path, regcache, family):
    model, plan, int8 = tmp_path / "model", tmp_path / "plan.safetensors", tmp_path / "int8"
    objective = ("--objective", "patches") if family == "PE Lang" else ()
    steps = (
        ("convert", *FAMILIES[family](tmp_path), "--out", model),
        ("inspect", model, *DATA, *objective),
        ("search", model, *DATA, *objective, "--max-trials", "3", "--out", plan),
        ("quantize", model, *DATA, "--registers", plan, "--out", int8),
        ("evaluate", int8, "--dataset", "emoji", *KNN),
    )
    for step in steps:
        status, out, error = regcache(*step)
        assert status == 0, (step[0], error)
    assert "knn" in out
    pixels = np.random.default_rng(0).standard_normal((2, 40, 40, 3)).astype(np.float32)
    exact, rounded = (encode_image(rc.load(folder).encoder, pixels) for folder in (model, int8))
    cosine = jnp.sum(exact * rounded, -1) / jnp.linalg.norm(exact, axis=-1) / jnp.linalg.norm(rounded, axis=-1)
    assert float(cosine.min()) > 0.99
