"""Hugging Face DINOv3 (`DINOv3ViTModel`): rotary positions, four trained registers, no key bias.

Files on the hub have `layer.N`; transformers 5 has `model.layer.N` in memory, and may write it."""

from __future__ import annotations

from typing import Literal

from regcache_jax.converters.engine import (
    Rule,
    StoredTensor,
    oihw_to_hwio,
    one_in_front,
    two_in_front,
)
from regcache_jax.converters.formats import Format, Given, needs_config, preprocessing, setting
from regcache_jax.converters.huggingface_clip import block_spec
from regcache_jax.converters.huggingface_dinov2 import projections

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec, Rotary
from regcache_jax.encoders import families

_BLOCK, _OURS = "layer.*", "image/blocks"

RULES = (
    Rule("embeddings.cls_token", "image/class_token", two_in_front),
    Rule("embeddings.register_tokens", "image/registers", one_in_front),
    Rule("embeddings.patch_embeddings.weight", "image/patch_embedding/kernel", oihw_to_hwio),
    Rule("embeddings.patch_embeddings.bias", "image/patch_embedding/bias"),
    Rule(f"{_BLOCK}.norm1.weight", f"{_OURS}/norm1/scale"),
    Rule(f"{_BLOCK}.norm1.bias", f"{_OURS}/norm1/bias"),
    *projections(_BLOCK),
    Rule(f"{_BLOCK}.layer_scale1.lambda1", f"{_OURS}/layer_scale1"),
    Rule(f"{_BLOCK}.norm2.weight", f"{_OURS}/norm2/scale"),
    Rule(f"{_BLOCK}.norm2.bias", f"{_OURS}/norm2/bias"),
    Rule(f"{_BLOCK}.layer_scale2.lambda1", f"{_OURS}/layer_scale2"),
    Rule("norm.weight", "image/final_norm/scale"),
    Rule("norm.bias", "image/final_norm/bias"),
)
# Which of query, key and value have a bias, as the configuration says it.
_QKV_BIAS: dict[tuple[bool, ...], Literal["qkv", "qv", "none"]] = {
    (True, True, True): "qkv",
    (True, False, True): "qv",
    (False, False, False): "none",
}


def spec(given: Given) -> EncoderSpec:
    """The spec of a DINOv3 folder, from its `config.json`; what that leaves open is as the class of transformers has it."""
    needs_config(given, "DINOv3")
    config = given.config
    biases = tuple(
        setting(config, f"{name}_bias", on) for name, on in (("query", True), ("key", False), ("value", True))
    )
    if biases not in _QKV_BIAS:
        raise UserError(
            f"config.json: biases of query, key and value should be on for all, for all but the key, or for none, got {list(biases)}"
        )
    for name in ("proj_bias", "mlp_bias"):
        if not setting(config, name, True):
            raise UserError(f"config.json: {name} is false, which no published DINOv3 has and which is not supported")
    gated = setting(config, "use_gated_mlp", False)
    default = BlockSpec(
        width=384,
        num_blocks=12,
        num_heads=6,
        mlp_width=1536,
        activation="gelu",
        norm_eps=1e-5,
        layer_scale=True,
        gated_mlp=gated,
        qkv_bias=_QKV_BIAS[biases],
        rotary=Rotary(setting(config, "rope_theta", 100.0)),
    )
    pictures = preprocessing(given.preprocessor, families.dinov3_preprocessing(setting(config, "image_size", 224)))
    image = ImageSpec(
        image_size=pictures.image_size,
        patch_size=setting(config, "patch_size", 16),
        blocks=block_spec(config, default, "gelu"),
        class_token=True,
        pooling="class",
        trained_registers=given.shape("embeddings.register_tokens", 3)[1]
        if given.has("embeddings.register_tokens")
        else 0,
        position_table=False,
    )
    return EncoderSpec(given.name, "dinov3", image, pictures, normalize=False)


def without_empty(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """A model without trained registers holds none of them as a tensor all the same."""
    return {name: tensor for name, tensor in tensors.items() if 0 not in tensor.shape}


FORMAT = Format(
    name="Hugging Face DINOv3",
    marks=("embeddings.cls_token", "layer.*.attention.q_proj.weight", "layer.*.layer_scale1.lambda1"),
    rules=RULES,
    spec=spec,
    model_types=("dinov3_vit",),
    classes=r"DINOv3ViT",
    prefixes=(("model.layer.", "layer."),),
    ignored=("embeddings.mask_token",),
    repair=without_empty,
)
