"""The bundled encoder: a small SigLIP-like image-text model for 64-pixel emoji drawings (docs/bundled_encoder.md).

Its outliers were trained and planted, so what is seen on it shows that the software works, and no more.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from regcache_jax.core.spec import (
    HALF,
    BlockSpec,
    EncoderSpec,
    ImageSpec,
    Preprocessing,
    TextSpec,
    Tokenization,
)

BLOCKS = BlockSpec(width=128, num_blocks=8, num_heads=4, mlp_width=512, activation="gelu_tanh", norm_eps=1e-6)

SPEC = EncoderSpec(
    name="emoji-vit-s8",
    family="siglip",
    image=ImageSpec(image_size=64, patch_size=8, blocks=BLOCKS, class_token=False, pooling="map"),
    preprocessing=Preprocessing(64, "squash", "bilinear", 64, HALF, HALF),
    text=TextSpec(
        vocab_size=2048,
        context_length=48,
        blocks=BlockSpec(width=96, num_blocks=0, num_heads=1, mlp_width=256, activation="gelu_tanh", norm_eps=1e-6),
        pooling="last",
        kind="hashed",
        projection=128,
    ),
    tokenization=Tokenization("hashed", 48, 2048, "lower", pad_id=0),
)


def bundled_model() -> Path:
    """The model folder inside the package."""
    return Path(str(resources.files("regcache_jax") / "demo" / "data" / "model"))
