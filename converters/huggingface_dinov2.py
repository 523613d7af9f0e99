"""Hugging Face DINOv2, plain and with registers (`Dinov2Model`, `Dinov2WithRegistersModel`, and their classifiers' backbones).

Files on the hub have the names listed first; transformers 5 has other names in memory, and may write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regcache_jax.converters.engine import (
    Rule,
    oihw_to_hwio,
    one_in_front,
    out_in_to_in_out,
    two_in_front,
)
from regcache_jax.converters.formats import Format, Given, activation, needs_config, preprocessing, setting
from regcache_jax.converters.layers import attention, mlp

from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec
from regcache_jax.encoders import families

_BLOCK, _OURS = "encoder.layer.*", "image/blocks"
_GATE = f"{_OURS}/mlp/gate/kernel"


def projections(block: str) -> tuple[Rule, ...]:
    """The layers of a block by the names that transformers 5 gives both DINOs: attention, and the MLP with or without a gate."""
    return (
        *attention(f"{block}.attention.{name}_proj" for name in "qkvo"),
        Rule(f"{block}.mlp.gate_proj.weight", f"{_OURS}/mlp/gate/kernel", out_in_to_in_out),
        Rule(f"{block}.mlp.gate_proj.bias", f"{_OURS}/mlp/gate/bias"),
        *mlp(f"{block}.mlp.up_proj", f"{block}.mlp.down_proj"),
    )


RULES = (
    Rule("embeddings.cls_token", "image/class_token", two_in_front),
    Rule("embeddings.register_tokens", "image/registers", one_in_front),
    Rule("embeddings.position_embeddings", "image/position_embedding", one_in_front),
    Rule("embeddings.patch_embeddings.projection.weight", "image/patch_embedding/kernel", oihw_to_hwio),
    Rule("embeddings.patch_embeddings.projection.bias", "image/patch_embedding/bias"),
    Rule(f"{_BLOCK}.norm1.weight", f"{_OURS}/norm1/scale"),
    Rule(f"{_BLOCK}.norm1.bias", f"{_OURS}/norm1/bias"),
    *attention(
        f"{_BLOCK}.attention.{name}" for name in ("attention.query", "attention.key", "attention.value", "output.dense")
    ),
    Rule(f"{_BLOCK}.layer_scale1.lambda1", f"{_OURS}/layer_scale1"),
    Rule(f"{_BLOCK}.norm2.weight", f"{_OURS}/norm2/scale"),
    Rule(f"{_BLOCK}.norm2.bias", f"{_OURS}/norm2/bias"),
    # The gated MLP of the giant model; here too the gate comes first.
    Rule(f"{_BLOCK}.mlp.weights_in.weight", (f"{_OURS}/mlp/gate/kernel", f"{_OURS}/mlp/fc1/kernel"), out_in_to_in_out),
    Rule(f"{_BLOCK}.mlp.weights_in.bias", (f"{_OURS}/mlp/gate/bias", f"{_OURS}/mlp/fc1/bias")),
    Rule(f"{_BLOCK}.mlp.weights_out.weight", f"{_OURS}/mlp/fc2/kernel", out_in_to_in_out, beside=_GATE),
    Rule(f"{_BLOCK}.mlp.weights_out.bias", f"{_OURS}/mlp/fc2/bias", beside=_GATE),
    *mlp(f"{_BLOCK}.mlp.fc1", f"{_BLOCK}.mlp.fc2"),
    Rule(f"{_BLOCK}.layer_scale2.lambda1", f"{_OURS}/layer_scale2"),
    Rule("layernorm.weight", "image/final_norm/scale"),
    Rule("layernorm.bias", "image/final_norm/bias"),
    *projections(_BLOCK),  # transformers 5
)
TRAINED_PIXELS, EVALUATED_PIXELS = 518, 224


def evaluated_pixels(trained: int) -> int:
    """Pictures are taken at 224 px where positions were trained at 518, as Meta evaluates; else at what was trained."""
    return EVALUATED_PIXELS if trained == TRAINED_PIXELS else trained


def dinov2_blocks(config: Mapping[str, Any]) -> BlockSpec:
    """The blocks that a DINOv2's configuration describes."""
    width = setting(config, "hidden_size", 768)
    mlp_width = round(width * setting(config, "mlp_ratio", 4.0))
    gated = setting(config, "use_swiglu_ffn", False)
    return BlockSpec(
        width=width,
        num_blocks=setting(config, "num_hidden_layers", 12),
        num_heads=setting(config, "num_attention_heads", 12),
        mlp_width=(int(mlp_width * 2 / 3) + 7) // 8 * 8 if gated else mlp_width,
        activation="silu" if gated else activation(config, "gelu"),
        norm_eps=setting(config, "layer_norm_eps", 1e-6),
        layer_scale=True,
        gated_mlp=gated,
    )


def spec(given: Given) -> EncoderSpec:
    """The spec of a DINOv2 folder, from its `config.json` (the class's own defaults are not those of the checkpoints)."""
    config = given.config
    if not config and given.row is not None and given.row.spec is not None:
        return given.row.spec
    needs_config(given, "DINOv2")
    registers = setting(config, "num_register_tokens", 4) if given.has("embeddings.register_tokens") else 0
    trained, patch = setting(config, "image_size", TRAINED_PIXELS), setting(config, "patch_size", 14)
    pictures = preprocessing(given.preprocessor, families.dinov2_preprocessing(evaluated_pixels(trained)))
    image = ImageSpec(
        image_size=pictures.image_size,
        patch_size=patch,
        blocks=dinov2_blocks(config),
        class_token=True,
        pooling="class",
        trained_registers=registers,
        position_grid=trained // patch,
        position_interpolation="bicubic_antialias" if registers else "bicubic",
    )
    return EncoderSpec(given.name, "dinov2", image, pictures, normalize=False)


FORMAT = Format(
    name="Hugging Face DINOv2",
    marks=("embeddings.cls_token", "encoder.layer.*.layer_scale1.lambda1"),
    rules=RULES,
    spec=spec,
    model_types=("dinov2", "dinov2_with_registers"),
    classes=r"Dinov2",
    prefixes=(("dinov2.", ""), ("dinov2_with_registers.", "")),
    ignored=("embeddings.mask_token",),
)
