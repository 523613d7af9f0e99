"""Hugging Face SigLIP and SigLIP 2 of fixed resolution (`SiglipModel`, `SiglipVisionModel`)."""

from __future__ import annotations

import dataclasses

from regcache_jax.converters.engine import (
    Rule,
    flat,
    oihw_to_hwio,
    out_heads_to_heads_out,
    out_in_to_in_out,
    two_in_front,
)
from regcache_jax.converters.formats import Format, Given, needs_config, preprocessing, setting
from regcache_jax.converters.huggingface_clip import VISION_ALONE, block_spec, sub_config, tower

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec, ImageSpec, TextSpec
from regcache_jax.encoders import families


def head(theirs: str, attention: str, fc1: str, fc2: str) -> tuple[Rule, ...]:
    """Attention pooling as torch's MultiheadAttention has it; `attention`, `fc1` and `fc2` are names of its parts."""
    ours = "image/head"
    qkv = tuple(f"{ours}/attention/{name}" for name in ("query", "key", "value"))
    return (
        Rule(f"{theirs}.probe", f"{ours}/probe", two_in_front),
        Rule(f"{theirs}.{attention}.in_proj_weight", tuple(f"{name}/kernel" for name in qkv), out_in_to_in_out),
        Rule(f"{theirs}.{attention}.in_proj_bias", tuple(f"{name}/bias" for name in qkv), flat),
        Rule(f"{theirs}.{attention}.out_proj.weight", f"{ours}/attention/out/kernel", out_heads_to_heads_out),
        Rule(f"{theirs}.{attention}.out_proj.bias", f"{ours}/attention/out/bias"),
        Rule(f"{theirs}.layernorm.weight", f"{ours}/norm/scale"),
        Rule(f"{theirs}.layernorm.bias", f"{ours}/norm/bias"),
        Rule(f"{theirs}.mlp.{fc1}.weight", f"{ours}/mlp/fc1/kernel", out_in_to_in_out),
        Rule(f"{theirs}.mlp.{fc1}.bias", f"{ours}/mlp/fc1/bias"),
        Rule(f"{theirs}.mlp.{fc2}.weight", f"{ours}/mlp/fc2/kernel", out_in_to_in_out),
        Rule(f"{theirs}.mlp.{fc2}.bias", f"{ours}/mlp/fc2/bias"),
    )


RULES = (
    Rule("vision_model.embeddings.patch_embedding.weight", "image/patch_embedding/kernel", oihw_to_hwio),
    Rule("vision_model.embeddings.patch_embedding.bias", "image/patch_embedding/bias"),
    *tower("vision_model", "image"),
    Rule("vision_model.post_layernorm.weight", "image/final_norm/scale"),
    Rule("vision_model.post_layernorm.bias", "image/final_norm/bias"),
    *head("vision_model.head", "attention", "fc1", "fc2"),
    Rule("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
    *tower("text_model", "text"),
    Rule("text_model.final_layer_norm.weight", "text/final_norm/scale"),
    Rule("text_model.final_layer_norm.bias", "text/final_norm/bias"),
    Rule("text_model.head.weight", "text/projection/kernel", out_in_to_in_out),
    Rule("text_model.head.bias", "text/projection/bias"),
    Rule("logit_scale", "logit_scale"),
    Rule("logit_bias", "logit_bias"),
)
_TANH = "gelu_pytorch_tanh"


def spec(given: Given) -> EncoderSpec:
    """The spec of a SigLIP folder, from its `config.json`; a tower that is not in the file is left out."""
    config = given.config
    if not config and given.row is not None and given.row.spec is not None:
        return given.row.spec
    needs_config(given, "SigLIP")
    vision, text = sub_config(config, "vision_config"), sub_config(config, "text_config")
    vocabulary, context = setting(text, "vocab_size", 32_000), setting(text, "max_position_embeddings", 64)
    pooled = given.has("vision_model.head.*")
    if not pooled and setting(vision, "vision_use_head", True):
        raise UserError(
            f"{given.name} is a SigLIP tower without its pooling head, of which config.json speaks (vision_use_head); where it is false, "
            "the patches are what is read"
        )
    pixels = setting(vision, "image_size", 224)
    default = families.blocks("B", "gelu_tanh", 1e-6)
    image = ImageSpec(
        image_size=pixels,
        patch_size=setting(vision, "patch_size", 16),
        blocks=block_spec(vision, default, _TANH),
        class_token=False,
        pooling="map" if pooled else "none",
    )
    pictures = families.siglip_preprocessing(pixels, "bilinear" if vocabulary == 256_000 else "bicubic")
    result = EncoderSpec(given.name, "siglip", image, preprocessing(given.preprocessor, pictures))
    if not given.has("text_model.*"):
        return result
    text_blocks = block_spec(text, default, _TANH)
    towers = TextSpec(
        vocab_size=vocabulary,
        context_length=context,
        blocks=text_blocks,
        pooling="last",
        eot_id=1,
        projection=setting(text, "projection_size", text_blocks.width),
        projection_bias=True,
    )
    tokenization = families.siglip_tokenization(context, vocabulary)
    return dataclasses.replace(result, text=towers, tokenization=tokenization)


FORMAT = Format(
    name="Hugging Face SigLIP",
    marks=("vision_model.embeddings.patch_embedding.bias",),
    rules=RULES,
    spec=spec,
    model_types=("siglip", "siglip_vision_model"),
    classes=r"Siglip(?!2)",
    prefixes=VISION_ALONE,
    ignored=("*.embeddings.position_ids",),
)
