"""OpenGVLab's InternViT, 300M and 6B: by its own names (`InternVisionModel`), and by transformers' (`InternVLVisionModel`).

The 6B has RMSNorm and norms of queries and keys over the whole width, as its tensors show; its early configurations do not say so."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from regcache_jax.converters import layers
from regcache_jax.converters.engine import Rule, flat, oihw_to_hwio, one_in_front, two_in_front
from regcache_jax.converters.formats import Format, Given, needs_config, preprocessing, setting
from regcache_jax.converters.huggingface_clip import block_spec
from regcache_jax.converters.meta_dinov2 import BLOCKS, MLP

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders import normed_families

RULES = (
    Rule("embeddings.class_embedding", "image/class_token", two_in_front),
    Rule("embeddings.position_embedding", "image/position_embedding", one_in_front),
    Rule("embeddings.patch_embedding.weight", "image/patch_embedding/kernel", oihw_to_hwio),
    Rule("embeddings.patch_embedding.bias", "image/patch_embedding/bias"),
    *(
        dataclasses.replace(rule, theirs=rule.theirs.replace("blocks.", "encoder.layers.").removesuffix(".gamma"))
        for rule in (*BLOCKS, *MLP)
        if rule.theirs.startswith("blocks.")
    ),
    Rule("encoder.layers.*.attn.q_norm.weight", "image/blocks/attention/query_norm/scale", flat),
    Rule("encoder.layers.*.attn.k_norm.weight", "image/blocks/attention/key_norm/scale", flat),
)


_HUGGING_FACE = (
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.position_embedding", "embeddings.position_embeddings"),
    ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
    ("encoder.layers.", "encoder.layer."),
    (".norm1", ".layernorm_before"),
    (".norm2", ".layernorm_after"),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
    (".attn.proj", ".attention.projection_layer"),
    (".attn.qkv", ".attention.q_proj"),
    (".attn.", ".attention."),
)
"""OpenGVLab's words, and transformers'."""


def in_transformers(name: str) -> str:
    """What transformers calls a tensor of OpenGVLab's (of queries, keys and values: the queries)."""
    for own, theirs in _HUGGING_FACE:
        name = name.replace(own, theirs)
    return name


HUGGING_FACE_RULES = (
    *(
        dataclasses.replace(rule, theirs=in_transformers(rule.theirs))
        for rule in RULES
        if not rule.theirs.startswith("encoder.layers.*.attn.qkv")
    ),
    *(
        rule
        for rule in layers.attention(f"encoder.layer.*.attention.{name}_proj" for name in "qkvo")
        if "o_proj" not in rule.theirs
    ),
)


def spec(given: Given, name_of: Callable[[str], str] = str) -> EncoderSpec:
    """The spec of an InternViT folder; `name_of` gives the file's name of a tensor. Raises UserError where config.json says other norms
    than the tensors have, and for norms of queries and keys beside LayerNorm, which no published one has."""
    config, known = given.config, normed_families.internvit_spec(given.name)
    needs_config(given, "InternViT")
    rms = not given.has(name_of("encoder.layers.*.norm1.bias"))
    found = "rms_norm" if rms else "layer_norm", given.has(name_of("encoder.layers.*.attn.q_norm.weight"))
    qk_norm = setting(config, "use_qk_norm" if "use_qk_norm" in config else "qk_normalization", found[1])
    said = config.get("norm_type", found[0]), qk_norm
    if said != found or (found[1] and not rms):
        raise UserError(
            f"{given.name}: config.json says norm_type {shown(repr(said[0]))} and norms of queries and keys {said[1]}, the tensors are "
            f"those of {found[0]} and {found[1]}; supported are layer_norm without norms of queries and keys, and rms_norm"
        )
    pixels = _side(config, "image_size", known.image.image_size)
    default = dataclasses.replace(
        known.image.blocks,
        qkv_bias="qkv" if given.has(name_of("encoder.layers.*.attn.qkv.bias")) else "none",
        norm="rms" if rms else "layer",
        qk_norm="width" if found[1] else "none",
    )
    image = dataclasses.replace(
        known.image,
        image_size=pixels,
        patch_size=_side(config, "patch_size", known.image.patch_size),
        blocks=block_spec(config, default, "gelu"),
    )
    pictures = dataclasses.replace(known.preprocessing, image_size=pixels, resize_size=pixels)
    return dataclasses.replace(known, image=image, preprocessing=preprocessing(given.preprocessor, pictures))


def _side(config: Mapping[str, Any], key: str, default: int) -> int:
    """The side of a square, which transformers states twice. Raises UserError for a rectangle."""
    sides = config.get(key, default)
    if isinstance(sides, list) and len(sides) == 2 and sides[0] == sides[1]:
        return setting({key: sides[0]}, key, default)
    return setting(config, key, default)


FORMAT = Format(
    name="InternViT",
    marks=("embeddings.class_embedding", "encoder.layers.*.ls1"),
    rules=RULES,
    spec=spec,
    model_types=("intern_vit_6b",),
    classes=r"InternVision",
)
HUGGING_FACE = Format(
    name="Hugging Face InternViT",
    marks=("embeddings.cls_token", "encoder.layer.*.lambda_1", "encoder.layer.*.attention.projection_layer.weight"),
    rules=HUGGING_FACE_RULES,
    spec=functools.partial(spec, name_of=in_transformers),
    model_types=("internvl_vision",),
    classes=r"InternVL",
    ignored=("embeddings.mask_token",),
)
