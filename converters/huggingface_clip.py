"""Hugging Face CLIP (`CLIPModel`, `CLIPVisionModelWithProjection`) and MetaCLIP 2 (`MetaClip2Model`), also for SigLIP's towers, which have
the same names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from regcache_jax.converters.engine import (
    Rule,
    oihw_to_hwio,
    out_in_to_in_out,
)
from regcache_jax.converters.formats import Format, Given, activation, needs_config, preprocessing, setting
from regcache_jax.converters.layers import attention, mlp

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec, TextSpec, Tokenization
from regcache_jax.encoders import families


def tower(theirs: str, ours: str) -> tuple[Rule, ...]:
    """What image and text towers share."""
    block, blocks = f"{theirs}.encoder.layers.*", f"{ours}/blocks"
    return (
        Rule(f"{theirs}.embeddings.position_embedding.weight", f"{ours}/position_embedding"),
        Rule(f"{block}.layer_norm1.weight", f"{blocks}/norm1/scale"),
        Rule(f"{block}.layer_norm1.bias", f"{blocks}/norm1/bias"),
        *attention((f"{block}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")), ours=blocks),
        Rule(f"{block}.layer_norm2.weight", f"{blocks}/norm2/scale"),
        Rule(f"{block}.layer_norm2.bias", f"{blocks}/norm2/bias"),
        *mlp(f"{block}.mlp.fc1", f"{block}.mlp.fc2", blocks),
    )


RULES = (
    Rule("vision_model.embeddings.class_embedding", "image/class_token"),
    Rule("vision_model.embeddings.patch_embedding.weight", "image/patch_embedding/kernel", oihw_to_hwio),
    Rule("vision_model.pre_layrnorm.weight", "image/pre_norm/scale"),
    Rule("vision_model.pre_layrnorm.bias", "image/pre_norm/bias"),
    *tower("vision_model", "image"),
    Rule("vision_model.post_layernorm.weight", "image/final_norm/scale"),
    Rule("vision_model.post_layernorm.bias", "image/final_norm/bias"),
    Rule("visual_projection.weight", "image/projection/kernel", out_in_to_in_out),
    Rule("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
    *tower("text_model", "text"),
    Rule("text_model.final_layer_norm.weight", "text/final_norm/scale"),
    Rule("text_model.final_layer_norm.bias", "text/final_norm/bias"),
    Rule("text_projection.weight", "text/projection/kernel", out_in_to_in_out),
    Rule("logit_scale", "logit_scale"),
)
# transformers 5 leaves the prefix out where a vision tower stands alone.
VISION_ALONE = tuple(
    (start, f"vision_model.{start}")
    for start in ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
)
_END = 49407
"""The end of a text in OpenAI's vocabulary, which tokens that were added later follow."""
_END_OF_OLD_CONFIGS = 2  # what configurations before transformers 4.31 call the end of text; the largest id was meant


def sub_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`vision_config` or `text_config`, or the configuration itself for a tower that stands alone. The `_dict` twin that
    early files carry wins, as in transformers."""
    nested, twin = config.get(name), config.get(f"{name}_dict")
    for key, value in ((name, nested), (f"{name}_dict", twin)):
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"config.json: {key} should be an object, got {value!r}")
    return {**(config if nested is None else nested), **(twin or {})}


def block_spec(config: Mapping[str, Any], default: BlockSpec, default_activation: str) -> BlockSpec:
    """The blocks a tower's configuration describes; `default` is what transformers fills in."""
    return dataclasses.replace(
        default,
        width=setting(config, "hidden_size", default.width),
        num_blocks=setting(config, "num_hidden_layers", default.num_blocks),
        num_heads=setting(config, "num_attention_heads", default.num_heads),
        mlp_width=setting(config, "intermediate_size", default.mlp_width),
        activation=activation(config, default_activation),
        norm_eps=setting(config, "layer_norm_eps", default.norm_eps),
    )


def spec(given: Given) -> EncoderSpec:
    """The spec of a CLIP folder, from its `config.json`; a tower that is not in the file is left out."""
    config = given.config
    if not config and given.row is not None and given.row.spec is not None:
        return given.row.spec
    needs_config(given, "CLIP")
    vision, text = sub_config(config, "vision_config"), sub_config(config, "text_config")
    pixels = setting(vision, "image_size", 224)
    out = setting(config, "projection_dim", 512) if given.has("visual_projection.weight") else None
    image = ImageSpec(
        image_size=pixels,
        patch_size=setting(vision, "patch_size", 32),
        blocks=block_spec(vision, families.blocks("B", "quick_gelu", 1e-5), "quick_gelu"),
        class_token=True,
        pooling="class",
        patch_bias=False,
        pre_norm=True,
        projection=out,
    )
    result = EncoderSpec(
        given.name, "clip", image, preprocessing(given.preprocessor, families.clip_preprocessing(pixels))
    )
    if not given.has("text_model.*"):
        return result
    vocabulary, context = setting(text, "vocab_size", 49408), setting(text, "max_position_embeddings", 77)
    worldwide = config.get("model_type") == "metaclip_2"
    end, is_old = end_of_text(given, text, vocabulary, 0 if worldwide else _END_OF_OLD_CONFIGS)
    towers = TextSpec(
        vocab_size=vocabulary,
        context_length=context,
        blocks=block_spec(text, families.blocks("clip text B", "quick_gelu", 1e-5, causal=True), "quick_gelu"),
        pooling="argmax" if is_old else "eot",
        eot_id=end,
        projection=out,
    )
    if worldwide:
        return families.with_metaclip2_words(dataclasses.replace(result, text=towers), end)
    pads_with_zero = given.tokenizer.get("pad_token") == "!"  # id 0, as LAION's folders have it
    tokenization = Tokenization(
        "clip",
        context,
        vocabulary,
        "none",
        0 if pads_with_zero else end,
        bos_id=beginning_of_text(given, text, end),
        eos_id=end,
    )  # its tokenizer cleans
    return dataclasses.replace(result, text=towers, tokenization=tokenization)


def end_of_text(given: Given, text: Mapping[str, Any], vocabulary: int, old: int) -> tuple[int, bool]:
    """The id that ends a text, and whether the configuration is an old one (it says `old`), under which the largest id is pooled.

    Stated by the configuration and by the tokenizer; raises UserError where they differ."""
    stated = setting(text, "eos_token_id", _END if vocabulary > _END else vocabulary - 1)
    is_old = stated == old
    known = given.marks.get("eos_token")
    if not is_old and known is not None and known != stated:
        raise UserError(
            f"{given.name}: config.json says eos_token_id {stated}, its tokenizer ends texts with {known}; one of them is of another model"
        )
    end = stated if not is_old else known if known is not None else _END if vocabulary > _END else vocabulary - 1
    if end >= vocabulary:
        raise UserError(f"{given.name}: eos_token_id {end} is outside the vocabulary of {vocabulary}")
    return end, is_old


def beginning_of_text(given: Given, text: Mapping[str, Any], end: int) -> int:
    """The id that begins a text: the tokenizer's, else the configuration's where that is one of its own, else the one before the end."""
    known = given.marks.get("bos_token")
    stated = text.get("bos_token_id")
    return known if known is not None else stated if type(stated) is int and stated > _END_OF_OLD_CONFIGS else end - 1


FORMAT = Format(
    name="Hugging Face CLIP",
    marks=("vision_model.embeddings.class_embedding",),
    rules=RULES,
    spec=spec,
    model_types=("clip", "clip_vision_model", "metaclip_2", "metaclip_2_vision_model"),
    classes=r"CLIP|MetaClip2",
    prefixes=VISION_ALONE,
    ignored=("*.embeddings.position_ids",),
    unless=("vision_model.encoder.layers.*.ls1",),  # InternViT's LayerScale, whose class token has the same name
)
