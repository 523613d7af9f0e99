"""Meta's Perception Encoder (Core, Spatial, Lang): its own `.pt` files, timm's `vit_pe_*` and open_clip's `PE-Core-*`.

What no file says (8 heads of pooling, heads of the blocks, exact GELU, epsilon, rotary base) all published models share."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from regcache_jax.converters import huggingface_siglip, open_clip, openai, timm, timm_vit
from regcache_jax.converters.engine import Rule, StoredTensor
from regcache_jax.converters.formats import Format, Given, num_heads, section
from regcache_jax.converters.meta_dinov3 import TIMM_LAYER_SCALE

from regcache_jax.core.spec import EncoderSpec, ImageSpec
from regcache_jax.encoders import families

META_RULES = (
    *openai.RULES,
    Rule("visual.transformer.resblocks.*.ls_1.gamma", "image/blocks/layer_scale1"),
    Rule("visual.transformer.resblocks.*.ls_2.gamma", "image/blocks/layer_scale2"),
    *huggingface_siglip.head("visual.attn_pool", "attn", "c_fc", "c_proj"),
)
TIMM_RULES = (*timm.CLIP_RULES, *TIMM_LAYER_SCALE, *timm.HEAD)
OPEN_CLIP_RULES = (*open_clip.around_trunk(TIMM_RULES), Rule("text.text_projection", "text/projection/kernel"))


class _Names(NamedTuple):
    """What the tensors are called that show an image tower's sizes; the axis of `projection` that goes out."""

    patch: str
    positions: str
    axes: int
    class_token: str
    norm1: str
    fc1: str
    layer_scale: str
    projection: str
    out: int


_BLOCKS = "visual.transformer.resblocks"
_META = _Names(
    "visual.conv1.weight", "visual.positional_embedding", 2, "visual.class_embedding",
    f"{_BLOCKS}.*.ln_1.weight", f"{_BLOCKS}.0.mlp.c_fc.weight", f"{_BLOCKS}.*.ls_1.gamma", "visual.proj", 1,
)  # fmt: skip
_TIMM = _Names(
    "patch_embed.proj.weight", "pos_embed", 3, "cls_token",
    "blocks.*.norm1.weight", "blocks.0.mlp.fc1.weight", "blocks.*.gamma_1", "head.weight", 0,
)  # fmt: skip


def image_spec(given: Given, names: _Names) -> ImageSpec:
    """An image tower from its shapes."""
    width, _, patch, _ = given.shape(names.patch, 4)
    class_token = given.has(names.class_token)
    grid = given.side(given.shape(names.positions, names.axes)[-2] - class_token)
    size = (width, given.count(names.norm1), num_heads(width), given.shape(names.fc1, 2)[0])
    out = given.shape(names.projection, 2)[names.out] if given.has(names.projection) else None
    layer_scale = given.has(names.layer_scale)
    return families.pe_image(size, patch, grid * patch, class_token=class_token, layer_scale=layer_scale, out=out)


def _meta_spec(given: Given) -> EncoderSpec:
    text = openai.text_spec(given, "", families.EXACT_GELU) if given.has("token_embedding.weight") else None
    return families.pe_spec(given.name, image_spec(given, _META), text)


def _timm_spec(given: Given) -> EncoderSpec:
    """timm's configuration has its own pictures: bicubic, the middle cut out."""
    image = dataclasses.replace(image_spec(given, _TIMM), projection_bias=given.has("head.bias"))
    spec = families.pe_spec(given.name, image)
    if not section(given.config, "pretrained_cfg", "config.json"):
        return spec
    return dataclasses.replace(spec, preprocessing=timm_vit.preprocessing(given, image.image_size))


def _open_clip_spec(given: Given) -> EncoderSpec:
    image = _timm_spec(dataclasses.replace(open_clip.trunk(given), config={})).image
    spec = families.pe_spec(given.name, image, openai.text_spec(given, "text.", families.EXACT_GELU))
    return dataclasses.replace(spec, preprocessing=open_clip.preprocessing(given.config, spec.preprocessing))


def below_visual(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """An image tower that stands alone, by the names it has beside a text tower."""
    alone = "conv1.weight" in tensors
    return {f"visual.{name}" if alone else name: tensor for name, tensor in tensors.items()}


FORMATS = (
    Format("Meta PE Core", ("visual.ln_pre.weight", "visual.attn_pool.probe"), META_RULES, _meta_spec, repair=below_visual),
    Format(
        "Meta PE",
        ("visual.conv1.weight", "visual.ln_pre.weight", "visual.transformer.resblocks.*.attn.in_proj_weight"),
        META_RULES,
        _meta_spec,
        unless=("visual.ln_post.*", "token_embedding.weight"),
        repair=below_visual,
    ),
    Format("timm PE Core", ("norm_pre.weight", "attn_pool.latent"), TIMM_RULES, _timm_spec),
    Format("timm PE", ("norm_pre.weight", "pos_embed", "blocks.*.attn.qkv.weight"), TIMM_RULES, _timm_spec, unless=("norm.*",)),
    Format(
        "open_clip PE Core",
        ("visual.trunk.norm_pre.weight", "visual.trunk.attn_pool.latent", "text.token_embedding.weight"),
        OPEN_CLIP_RULES,
        _open_clip_spec,
        ignored=("text.attn_mask",),
    ),
)  # fmt: skip
