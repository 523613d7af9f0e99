"""The bundled encoder: a small SigLIP-like image-text model for 64-pixel emoji drawings (docs/bundled_encoder.md).

Its outliers were trained and planted, so what is seen on it shows that the software works, and no more.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.spec import (
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


def from_flat(arrays: dict[str, np.ndarray]) -> Encoder:
    """The encoder from the recipe's flat arrays (dotted names, weights [in, out], packed qkv; see docs/bundled_encoder.md)."""
    flat = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    heads, size = BLOCKS.num_heads, BLOCKS.head_dim

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": flat[f"{name}.g"], "bias": flat[f"{name}.b"]}

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": flat[f"{name}.w"], "bias": flat[f"{name}.b"]}

    def projections(name: str, kinds: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
        kernel, bias = flat[f"{name}.w"], flat[f"{name}.b"]
        kernel = kernel.reshape(*kernel.shape[:-1], len(kinds), heads, size)
        bias = bias.reshape(*bias.shape[:-1], len(kinds), heads, size)
        return {
            kind: {"kernel": kernel[..., index, :, :], "bias": bias[..., index, :, :]}
            for index, kind in enumerate(kinds)
        }

    def output(name: str) -> dict[str, np.ndarray]:
        kernel = flat[f"{name}.w"]
        return {"kernel": kernel.reshape(*kernel.shape[:-2], heads, size, -1), "bias": flat[f"{name}.b"]}

    image: dict[str, Any] = {
        "patch_embedding": {"kernel": flat["patch.w"].reshape(8, 8, 3, -1), "bias": flat["patch.b"]},
        "position_embedding": flat["pos"][0],
        "blocks": {
            "norm1": norm("blocks.ln1"),
            "attention": {**projections("blocks.qkv", ("query", "key", "value")), "out": output("blocks.out")},
            "norm2": norm("blocks.ln2"),
            "mlp": {"fc1": dense("blocks.fc1"), "fc2": dense("blocks.fc2")},
        },
        "final_norm": norm("lnf"),
        "head": {
            "probe": flat["head.probe"].reshape(-1),
            "attention": {
                **projections("head.q", ("query",)),
                **projections("head.kv", ("key", "value")),
                "out": output("head.out"),
            },
            "norm": norm("head.ln"),
            "mlp": {"fc1": dense("head.fc1"), "fc2": dense("head.fc2")},
        },
    }
    text = {"embedding": flat["text.emb"], "fc1": dense("text.fc1"), "fc2": dense("text.fc2")}
    params = {
        "image": image,
        "text": text,
        "logit_scale": flat["logit_scale"].reshape(()),
        "logit_bias": np.zeros((), np.float32),  # trained with a softmax over the classes: no offset
    }
    return Encoder(_arrays(params), spec=SPEC)


def _arrays(tree: Any) -> Any:
    return {name: _arrays(node) for name, node in tree.items()} if isinstance(tree, dict) else jnp.asarray(tree)
