"""Hugging Face DINOv3 (`DINOv3ViTModel`): rotary positions, four trained registers, no key bias.

Files on the hub have `layer.N`; transformers 5 has `model.layer.N` in memory, and may write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regcache_jax.converters.engine import (
    Rule,
    StoredTensor,
    flat,
    oihw_to_hwio,
    one_in_front,
    out_heads_to_heads_out,
    out_in_to_in_out,
    two_in_front,
)
from regcache_jax.converters.formats import Format, Given, activation, needs_config, preprocessing, setting

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
    Rule(f"{_BLOCK}.attention.q_proj.weight", f"{_OURS}/attention/query/kernel", out_in_to_in_out),
    Rule(f"{_BLOCK}.attention.q_proj.bias", f"{_OURS}/attention/query/bias", flat),
    Rule(f"{_BLOCK}.attention.k_proj.weight", f"{_OURS}/attention/key/kernel", out_in_to_in_out),
    Rule(f"{_BLOCK}.attention.k_proj.bias", f"{_OURS}/attention/key/bias", flat),
    Rule(f"{_BLOCK}.attention.v_proj.weight", f"{_OURS}/attention/value/kernel", out_in_to_in_out),
    Rule(f"{_BLOCK}.attention.v_proj.bias", f"{_OURS}/attention/value/bias", flat),
    Rule(f"{_BLOCK}.attention.o_proj.weight", f"{_OURS}/attention/out/kernel", out_heads_to_heads_out),
    Rule(f"{_BLOCK}.attention.o_proj.bias", f"{_OURS}/attention/out/bias"),
    Rule(f"{_BLOCK}.layer_scale1.lambda1", f"{_OURS}/layer_scale1"),
    Rule(f"{_BLOCK}.norm2.weight", f"{_OURS}/norm2/scale"),
    Rule(f"{_BLOCK}.norm2.bias", f"{_OURS}/norm2/bias"),
    Rule(f"{_BLOCK}.mlp.gate_proj.weight", f"{_OURS}/mlp/gate/kernel", out_in_to_in_out),
    Rule(f"{_BLOCK}.mlp.gate_proj.bias", f"{_OURS}/mlp/gate/bias"),
    Rule(f"{_BLOCK}.mlp.up_proj.weight", f"{_OURS}/mlp/fc1/kernel", out_in_to_in_out),
    Rule(f"{_BLOCK}.mlp.up_proj.bias", f"{_OURS}/mlp/fc1/bias"),
    Rule(f"{_BLOCK}.mlp.down_proj.weight", f"{_OURS}/mlp/fc2/kernel", out_in_to_in_out),
    Rule(f"{_BLOCK}.mlp.down_proj.bias", f"{_OURS}/mlp/fc2/bias"),
    Rule(f"{_BLOCK}.layer_scale2.lambda1", f"{_OURS}/layer_scale2"),
    Rule("norm.weight", "image/final_norm/scale"),
    Rule("norm.bias", "image/final_norm/bias"),
)
# Which of query, key and value have a bias, as the configuration says it.
_QKV_BIAS = {(True, True, True): "qkv", (True, False, True): "qv", (False, False, False): "none"}


def spec(given: Given) -> EncoderSpec:
    """The spec of a DINOv3 folder, from its `config.json`; what that leaves open is as the class of transformers has it."""
    needs_config(given, "DINOv3")
    config = given.config
    biases = tuple(
        _switch(config, f"{name}_bias", on) for name, on in (("query", True), ("key", False), ("value", True))
    )
    if biases not in _QKV_BIAS:
        raise UserError(
            f"config.json: biases of query, key and value should be on for all, for all but the key, or for none, got {list(biases)}"
        )
    for name in ("proj_bias", "mlp_bias"):
        if not _switch(config, name, True):
            raise UserError(f"config.json: {name} is false, which no published DINOv3 has and which is not supported")
    gated = _switch(config, "use_gated_mlp", False)
    blocks = BlockSpec(
        width=setting(config, "hidden_size", 384),
        num_blocks=setting(config, "num_hidden_layers", 12),
        num_heads=setting(config, "num_attention_heads", 6),
        mlp_width=setting(config, "intermediate_size", 1536),
        activation=activation(config, "gelu"),
        norm_eps=setting(config, "layer_norm_eps", 1e-5),
        layer_scale=True,
        gated_mlp=gated,
        qkv_bias=_QKV_BIAS[biases],
        rotary=Rotary(setting(config, "rope_theta", 100.0)),
    )
    pictures = preprocessing(given.preprocessor, families.dinov3_preprocessing(setting(config, "image_size", 224)))
    image = ImageSpec(
        image_size=pictures.image_size,
        patch_size=setting(config, "patch_size", 16),
        blocks=blocks,
        class_token=True,
        pooling="class",
        trained_registers=given.shape("embeddings.register_tokens", 3)[1]
        if given.has("embeddings.register_tokens")
        else 0,
        position_table=False,
    )
    return EncoderSpec(given.name, "dinov3", image, pictures, normalize=False)


def _switch(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A yes or no of a configuration. Raises UserError for anything else."""
    value = config.get(key, default)
    if type(value) is not bool:
        raise UserError(f"config.json: {key} should be true or false, got {value!r}")
    return value


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
