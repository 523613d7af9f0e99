"""open_clip's CLIPs (OpenAI's names) and SigLIPs (image tower in timm's names, text tower in its own)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from regcache_jax.converters import openai, timm
from regcache_jax.converters.engine import Rule, out_in_to_in_out
from regcache_jax.converters.formats import Format, Given, filter_of, num_heads, section, setting, three_numbers

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Activation, BlockSpec, EncoderSpec, Preprocessing, TextSpec
from regcache_jax.encoders import clipa, families

CONFIG = "open_clip_config.json"
_TRUNK = "visual.trunk."


def around_trunk(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """An encoder whose image tower is timm's, by these rules, and whose text tower has a word of its own."""
    return (
        *(dataclasses.replace(rule, theirs=f"{_TRUNK}{rule.theirs}") for rule in rules),
        *openai.text("text."),
        Rule("logit_scale", "logit_scale"),
        Rule("logit_bias", "logit_bias"),
    )


SIGLIP_RULES = (
    *around_trunk(timm.SIGLIP_RULES),
    Rule("text.text_projection.weight", "text/projection/kernel", out_in_to_in_out),
    Rule("text.text_projection.bias", "text/projection/bias"),
)
CLIP_TRUNK_RULES = (*around_trunk(timm.CLIP_RULES), Rule("text.text_projection", "text/projection/kernel"))


def trunk(given: Given) -> Given:
    """The image tower of such an encoder by timm's names."""
    tensors = {name.removeprefix(_TRUNK): tensor for name, tensor in given.tensors.items() if name.startswith(_TRUNK)}
    return dataclasses.replace(given, tensors=tensors)


def preprocessing(config: Mapping[str, Any], default: Preprocessing) -> Preprocessing:
    """`preprocess_cfg` of an open_clip_config.json in our words."""
    told = section(config, "preprocess_cfg", CONFIG)
    filter = filter_of(told.get("interpolation", default.filter))
    if filter is None or told.get("resize_mode", default.resize) not in ("shortest", "squash"):
        raise UserError(f"{CONFIG}: interpolation or resize_mode is not known in {dict(told)}")
    return dataclasses.replace(
        default,
        resize=told.get("resize_mode", default.resize),
        filter=filter,
        mean=three_numbers(told.get("mean", default.mean), f"{CONFIG}: mean"),
        std=three_numbers(told.get("std", default.std), f"{CONFIG}: std"),
    )


def clip_spec(given: Given) -> EncoderSpec:
    """A CLIP in open_clip's names. The activation belongs to the tag: it is in the catalog, or in open_clip_config.json."""
    model = section(given.config, "model_cfg", CONFIG)
    vision, text = section(model, "vision_cfg", CONFIG), section(model, "text_cfg", CONFIG)
    if given.row is not None and given.row.spec is not None:
        row = given.row.spec
        spec = openai.clip_spec(
            given,
            row.image.blocks.activation,
            row.image.blocks.num_heads,
            row.text.blocks.num_heads if row.text else 1,
        )
        spec = dataclasses.replace(spec, preprocessing=row.preprocessing)
        if row.text is not None and row.text.pooling == "eot" and row.text.eot_id is not None:
            return families.with_metaclip2_words(spec, row.text.eot_id)
        return clipa.with_mean_and_words(spec) if row.image.pooling == "normed_mean" else spec
    if not model:
        raise UserError(
            f"{given.name} is a CLIP in open_clip's names, which does not say which GELU it was trained with; name its row "
            "of the catalog, e.g. --name open_clip:ViT-B-16,laion2b_s34b_b88k, or put open_clip_config.json beside it"
        )
    width = given.shape("visual.conv1.weight", 4)[0]
    text_width = given.shape("token_embedding.weight", 2)[1]
    spec = openai.clip_spec(
        given,
        _activation(model),
        width // setting(vision, "head_width", 64, CONFIG),
        setting(text, "heads", max(1, text_width // 64), CONFIG),
    )
    spec = dataclasses.replace(spec, preprocessing=preprocessing(given.config, spec.preprocessing))
    pooling, causal = setting(text, "pool_type", "argmax", CONFIG), not setting(text, "no_causal_mask", False, CONFIG)
    pooled = setting(vision, "pool_type", "tok", CONFIG)
    mean = pooled == "avg" and setting(vision, "final_ln_after_pool", False, CONFIG)
    if mean and pooling == "last" and not causal:
        return clipa.with_mean_and_words(spec)
    if pooled != "tok":
        raise UserError(
            f"{CONFIG}: pictures of a CLIP are pooled by their class token (pool_type tok), or all as in a CLIPA"
        )
    if pooling not in ("argmax", "eos") or not causal:
        raise UserError(
            f"{CONFIG}: texts of a CLIP are causal and read at their end (pool_type argmax or eos), got {pooling!r}, causal {causal}"
        )
    return spec if pooling == "argmax" else families.with_metaclip2_words(spec, setting(text, "eos_id", 2, CONFIG))


def _activation(model: Mapping[str, Any]) -> Activation:
    """The activation of both towers. Raises UserError for options of it that they do not share, or that are not known."""
    told = [section(section(model, part, CONFIG), "act_kwargs", CONFIG) for part in ("vision_cfg", "text_cfg")]
    if told[0] != told[1] or told[0] not in ({}, {"approximate": "tanh"}):
        raise UserError(
            f"{CONFIG}: act_kwargs of both towers should be absent, or approximate tanh; got {told[0]} and {told[1]}"
        )
    quick = setting(model, "quick_gelu", False, CONFIG)
    return "quick_gelu" if quick else "gelu_tanh" if told[0] else "gelu"


def clip_trunk_spec(given: Given) -> EncoderSpec:
    """A CLIP whose image tower is timm's (MobileCLIP2-L/14). Whether its texts are causal belongs to the tag: it is in the catalog, or in
    open_clip_config.json."""
    model = section(given.config, "model_cfg", CONFIG)
    text = section(model, "text_cfg", CONFIG)
    row = None if given.row is None else given.row.spec
    if row is None and not model:
        raise UserError(
            f"{given.name} is a CLIP in open_clip's and timm's names, which does not say whether its texts are causal; name its row of the "
            "catalog with --name, e.g. --name open_clip:MobileCLIP2-L-14,dfndr2b, or put open_clip_config.json beside it"
        )
    image = timm.clip_image(trunk(given), families.EXACT_GELU)
    if row is not None and row.text is not None:
        causal, pictures = row.text.blocks.causal, row.preprocessing
    else:
        causal = not setting(text, "no_causal_mask", False, CONFIG)
        pictures = preprocessing(given.config, families.clip_preprocessing(image.image_size))
    towers = openai.text_spec(given, "text.", families.EXACT_GELU)
    towers = dataclasses.replace(towers, blocks=dataclasses.replace(towers.blocks, causal=causal))
    words = families.clip_tokenization(towers.context_length, towers.vocab_size)
    return EncoderSpec(given.name, "clip", image, pictures, towers, words, logit_bias=given.has("logit_bias"))


def siglip_spec(given: Given) -> EncoderSpec:
    """A SigLIP in open_clip's names, with the activations open_clip gives it: timm's for the image tower; exact for the
    text tower of SigLIP, tanh for that of SigLIP 2."""
    image = timm.siglip_image(trunk(given))
    vocabulary, width = given.shape("text.token_embedding.weight", 2)
    context = given.shape("text.positional_embedding", 2)[0]
    text_config = section(section(given.config, "model_cfg", CONFIG), "text_cfg", CONFIG)
    towers = TextSpec(
        vocab_size=vocabulary,
        context_length=context,
        blocks=BlockSpec(
            width=width,
            num_blocks=given.count("text.transformer.resblocks.*.ln_1.weight"),
            num_heads=setting(text_config, "heads", num_heads(width), CONFIG),
            mlp_width=given.shape("text.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            activation="gelu_tanh" if vocabulary == 256_000 else "gelu",
            norm_eps=1e-6,
        ),
        pooling="last",
        eot_id=1,
        projection=given.shape("text.text_projection.weight", 2)[0],
        projection_bias=True,
    )
    tokenization = dataclasses.replace(families.siglip_tokenization(context, vocabulary), cleaning="canonicalize")
    pictures = preprocessing(given.config, families.siglip_preprocessing(image.image_size, "bicubic"))
    return EncoderSpec(given.name, "siglip", image, pictures, towers, tokenization)


FORMATS = (
    Format(
        "open_clip CLIP",
        ("visual.class_embedding", "visual.conv1.weight", "text_projection"),
        openai.RULES,
        clip_spec,
        ignored=("attn_mask", "*.attn_mask"),
    ),
    Format(
        "open_clip CLIP with timm's tower",
        ("visual.trunk.norm_pre.weight", "visual.trunk.head.weight", "text.token_embedding.weight"),
        CLIP_TRUNK_RULES,
        clip_trunk_spec,
        ignored=("text.attn_mask",),
    ),
    Format(
        "open_clip SigLIP",
        ("visual.trunk.attn_pool.latent", "text.token_embedding.weight"),
        SIGLIP_RULES,
        siglip_spec,
        ignored=("text.attn_mask",),
        unless=("visual.trunk.embeds.*",),
    ),
)
