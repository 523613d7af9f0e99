"""OpenGVLab's InternViT-300M (`InternVisionModel`), by its own names."""

from __future__ import annotations

import dataclasses

from regcache_jax.converters.engine import Rule, oihw_to_hwio, one_in_front, two_in_front
from regcache_jax.converters.formats import Format, Given, needs_config, preprocessing, setting
from regcache_jax.converters.huggingface_clip import block_spec
from regcache_jax.converters.meta_dinov2 import BLOCKS, MLP

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders import families

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
)


def spec(given: Given) -> EncoderSpec:
    """The spec of an InternViT folder. Raises UserError for the 6B's norms, which blocks here do not have."""
    config, known = given.config, families.internvit_spec(given.name)
    needs_config(given, "InternViT")
    if config.get("norm_type", "layer_norm") != "layer_norm" or setting(config, "qk_normalization", False):
        raise UserError(
            f"{given.name} has norm_type {shown(repr(config.get('norm_type')))} and norms of queries and keys "
            f"({config.get('qk_normalization')}), as the 6B has; only layer_norm without them is supported (the 300M)"
        )
    pixels = setting(config, "image_size", known.image.image_size)
    default = dataclasses.replace(known.image.blocks, qkv_bias="qkv" if setting(config, "qkv_bias", True) else "none")
    image = dataclasses.replace(
        known.image,
        image_size=pixels,
        patch_size=setting(config, "patch_size", known.image.patch_size),
        blocks=block_spec(config, default, "gelu"),
    )
    pictures = dataclasses.replace(known.preprocessing, image_size=pixels, resize_size=pixels)
    return dataclasses.replace(known, image=image, preprocessing=preprocessing(given.preprocessor, pictures))


FORMAT = Format(
    name="InternViT",
    marks=("embeddings.class_embedding", "encoder.layers.*.ls1"),
    rules=RULES,
    spec=spec,
    model_types=("intern_vit_6b",),
    classes=r"InternVision",
)
