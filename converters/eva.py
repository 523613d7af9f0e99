"""EVA-02-CLIP: image tower in timm's names, alone or in open_clip's files beside a CLIP's text tower.

What no file says (heads of 64, epsilon, rotary positions scaled to a grid of 16 x 16) all published models share but E/14, whose norms
stand behind its layers."""

from __future__ import annotations

from regcache_jax.converters import layers, openai
from regcache_jax.converters.engine import (
    Rule,
    oihw_to_hwio,
    one_in_front,
    out_in_to_in_out,
    two_in_front,
)
from regcache_jax.converters.formats import Format, Given
from regcache_jax.converters.open_clip import around_trunk, trunk

from regcache_jax.core.spec import EncoderSpec, ImageSpec
from regcache_jax.encoders import families, normed_families

_OURS = "image/blocks"
_NORMS = (
    ("norm1", f"{_OURS}/norm1"),
    ("norm2", f"{_OURS}/norm2"),
    ("attn.norm", f"{_OURS}/attention/norm"),
    ("mlp.norm", f"{_OURS}/mlp/norm"),
)
RULES = (
    Rule("cls_token", "image/class_token", two_in_front),
    Rule("pos_embed", "image/position_embedding", one_in_front),
    Rule("patch_embed.proj.weight", "image/patch_embedding/kernel", oihw_to_hwio),
    Rule("patch_embed.proj.bias", "image/patch_embedding/bias"),
    *(
        Rule(f"blocks.*.{norm}.{leaf}", f"{ours}/{name}")
        for norm, ours in _NORMS
        for leaf, name in (("weight", "scale"), ("bias", "bias"))
    ),
    *layers.attention(f"blocks.*.attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "proj")),
    Rule("blocks.*.mlp.fc1_g.weight", f"{_OURS}/mlp/gate/kernel", out_in_to_in_out),
    Rule("blocks.*.mlp.fc1_g.bias", f"{_OURS}/mlp/gate/bias"),
    *layers.mlp("blocks.*.mlp.fc1_x", "blocks.*.mlp.fc2"),
    Rule("norm.weight", "image/final_norm/scale"),
    Rule("norm.bias", "image/final_norm/bias"),
    Rule("head.weight", "image/projection/kernel", out_in_to_in_out),
    Rule("head.bias", "image/projection/bias"),
)


def image_spec(given: Given) -> ImageSpec:
    """The image tower in timm's names, from its shapes."""
    width, _, patch, _ = given.shape("patch_embed.proj.weight", 4)
    count, mlp_width = given.count("blocks.*.norm1.weight"), given.shape("blocks.0.mlp.fc1_x.weight", 2)[0]
    pixels = given.side(given.shape("pos_embed", 3)[1] - 1) * patch
    out = given.shape("head.weight", 2)[0]
    return normed_families.eva_image((width, count, max(1, width // 64), mlp_width), patch, pixels, out)


def tower_spec(given: Given) -> EncoderSpec:
    """The image tower alone."""
    return normed_families.eva_spec(given.name, image_spec(given))


def spec(given: Given) -> EncoderSpec:
    """Both towers, as open_clip writes them."""
    text = openai.text_spec(given, "text.", families.EXACT_GELU)
    return normed_families.eva_spec(given.name, image_spec(trunk(given)), text)


_MARKS = ("blocks.*.attn.norm.weight", "blocks.*.mlp.norm.weight", "head.weight")
FORMATS = (
    Format("timm EVA-02-CLIP", _MARKS, RULES, tower_spec, ignored=("*rope.*",)),
    Format(
        "open_clip EVA-02-CLIP",
        (*(f"visual.trunk.{mark}" for mark in _MARKS), "text.token_embedding.weight"),
        (*around_trunk(RULES), Rule("text.text_projection", "text/projection/kernel")),
        spec,
        ignored=("text.attn_mask", "*rope.*"),
    ),
)
