"""Hugging Face's plain ViTs: `ViTModel` and `ViTForImageClassification` (augreg, DINO), the encoder of `ViTMAEModel`, `ViTMSNModel`.

Files on the hub have the names listed first, transformers 5 has others in memory. The feature is the normed class token. A linear
classifier is kept; the pooler of `ViTModel` (a dense layer and tanh, which no published classifier reads) and MAE's decoder are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from regcache_jax.converters import layers
from regcache_jax.converters.engine import (
    Rule,
    oihw_to_hwio,
    one_in_front,
    out_in_to_in_out,
    two_in_front,
)
from regcache_jax.converters.formats import Format, Given, needs_config, preprocessing, setting
from regcache_jax.converters.huggingface_clip import block_spec
from regcache_jax.converters.labels import count_classes

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec
from regcache_jax.encoders import families


def _block(theirs: str, attention: tuple[str, str, str, str], mlp: tuple[str, str]) -> tuple[Rule, ...]:
    """One spelling of a block: where it stands, its four projections and its two layers."""
    return (
        *(
            Rule(f"{theirs}.{norm}.{leaf}", f"image/blocks/{ours}/{name}")
            for norm, ours in (("layernorm_before", "norm1"), ("layernorm_after", "norm2"))
            for leaf, name in (("weight", "scale"), ("bias", "bias"))
        ),
        *layers.attention(f"{theirs}.attention.{name}" for name in attention),
        *layers.mlp(*(f"{theirs}.{name}" for name in mlp)),
    )


RULES = (
    Rule("embeddings.cls_token", "image/class_token", two_in_front),
    Rule("embeddings.position_embeddings", "image/position_embedding", one_in_front),
    Rule("embeddings.patch_embeddings.projection.weight", "image/patch_embedding/kernel", oihw_to_hwio),
    Rule("embeddings.patch_embeddings.projection.bias", "image/patch_embedding/bias"),
    *_block(
        "encoder.layer.*",
        ("attention.query", "attention.key", "attention.value", "output.dense"),
        ("intermediate.dense", "output.dense"),
    ),
    Rule("layernorm.weight", "image/final_norm/scale"),
    Rule("layernorm.bias", "image/final_norm/bias"),
    Rule("classifier.weight", "classifier/kernel", out_in_to_in_out),
    Rule("classifier.bias", "classifier/bias"),
    *_block("layers.*", ("q_proj", "k_proj", "v_proj", "o_proj"), ("mlp.fc1", "mlp.fc2")),  # transformers 5
)


def spec(given: Given) -> EncoderSpec:
    """The spec of a ViT folder, from its `config.json`."""
    config = given.config
    needs_config(given, "ViT")
    if given.has("embeddings.distillation_token"):
        raise UserError(
            f"{given.name} is a distilled DeiT with a second class token, which is not supported yet; plain DeiTs are (model_type vit)"
        )
    pixels = setting(config, "image_size", 224)
    biases: Literal["qkv", "none"] = "qkv" if setting(config, "qkv_bias", True) else "none"
    blocks = block_spec(config, BlockSpec(768, 12, 12, 3072, "gelu", 1e-12, qkv_bias=biases), "gelu")
    image = ImageSpec(pixels, setting(config, "patch_size", 16), blocks, class_token=True, pooling="class")
    pictures = preprocessing(_squared(given.preprocessor), families.vit_preprocessing(pixels))
    return EncoderSpec(
        given.name, "vit", image, pictures, normalize=False, num_classes=count_classes(given, "classifier.weight")
    )


def _squared(processor: Mapping[str, Any]) -> Mapping[str, Any]:
    """A processor in which one number for the size is a square, as old ones of ViT's mean it."""
    size = processor.get("size")
    return processor if type(size) is not int else {**processor, "size": {"height": size, "width": size}}


FORMAT = Format(
    name="Hugging Face ViT",
    marks=("embeddings.cls_token", "*.*.layernorm_before.weight"),
    rules=RULES,
    spec=spec,
    model_types=("vit", "vit_mae", "vit_msn", "deit"),
    classes=r"ViT|DeiT",
    prefixes=(("vit.", ""), ("deit.", "")),
    ignored=("embeddings.mask_token",),
    heads=("pooler.*", "decoder.*"),
)
