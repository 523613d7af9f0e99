"""The whole way of a small DINOv3, by the commands that a user types."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from commands import DATA
from randomized import save_random

import regcache_jax as rc
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.models.export import load

CONFIG = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "image_size": 48,
    "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu",
}  # fmt: skip


@pytest.mark.slow
def test_a_dinov3_goes_all_the_way_from_its_folder_to_an_exported_int8_encoder(tmp_path, regcache):
    source = save_random(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**CONFIG)), tmp_path / "source")
    steps = (
        ("convert", source, "--out", tmp_path / "model", "--check"),
        ("inspect", tmp_path / "model", *DATA),
        ("search", tmp_path / "model", *DATA, "--max-trials", "3", "--position", "none", "--out", tmp_path / "plan.safetensors"),
        ("quantize", tmp_path / "model", *DATA, "--registers", tmp_path / "plan.safetensors", "--out", tmp_path / "int8"),
        ("export", tmp_path / "int8", "--out", tmp_path / "int8.stablehlo", "--platforms", "cpu"),
    )  # fmt: skip
    for step in steps:
        status, out, error = regcache(*step)
        assert status == 0, (step[0], error)
        assert step[0] != "inspect" or "no outliers" in out
    pixels = np.random.default_rng(0).standard_normal((2, 48, 48, 3)).astype(np.float32)
    exact, rounded = (encode_image(rc.load(tmp_path / name).encoder, pixels) for name in ("model", "int8"))
    cosine = jnp.sum(exact * rounded, -1) / jnp.linalg.norm(exact, axis=-1) / jnp.linalg.norm(rounded, axis=-1)
    assert float(cosine.min()) > 0.99
    exported = load(tmp_path / "int8.stablehlo")
    np.testing.assert_allclose(jax.jit(exported)(pixels), rounded, rtol=1e-2, atol=1e-2)
