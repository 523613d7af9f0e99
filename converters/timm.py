"""timm's vision transformers: DINOv2, SigLIP's image tower, CLIP's image tower."""

from __future__ import annotations

import dataclasses

from regcache_jax.converters.engine import (
    Rule,
    flat,
    one_in_front,
    out_heads_to_heads_out,
    out_in_to_in_out,
    two_in_front,
    without_class_row,
)
from regcache_jax.converters.formats import Format, Given, num_heads
from regcache_jax.converters.meta_dinov2 import BLOCKS, MLP, dinov2_spec

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Activation, BlockSpec, EncoderSpec, ImageSpec
from regcache_jax.encoders import families

_OURS, _HEAD, _ATTENTION = "image/blocks", "image/head", "image/head/attention"
_DINOV2 = (
    Rule("cls_token", "image/class_token", two_in_front),
    Rule("reg_token", "image/registers", one_in_front),
    *BLOCKS,
    # The gated MLP of the giant model: gate and up projection in one, the gate first. Left out where there is no gate.
    Rule("blocks.*.mlp.fc1.weight", (f"{_OURS}/mlp/gate/kernel", f"{_OURS}/mlp/fc1/kernel"), out_in_to_in_out),
    Rule("blocks.*.mlp.fc1.bias", (f"{_OURS}/mlp/gate/bias", f"{_OURS}/mlp/fc1/bias")),
    *MLP,
)
DINOV2_RULES = (*_DINOV2, Rule("pos_embed", "image/position_embedding", one_in_front))
# With registers, the class token already carries its position.
DINOV2_REGISTER_RULES = (*_DINOV2, Rule("pos_embed", "image/position_embedding", without_class_row))
HEAD = (
    Rule("attn_pool.latent", f"{_HEAD}/probe", two_in_front),
    Rule("attn_pool.q.weight", f"{_ATTENTION}/query/kernel", out_in_to_in_out),
    Rule("attn_pool.q.bias", f"{_ATTENTION}/query/bias", flat),
    Rule("attn_pool.kv.weight", (f"{_ATTENTION}/key/kernel", f"{_ATTENTION}/value/kernel"), out_in_to_in_out),
    Rule("attn_pool.kv.bias", (f"{_ATTENTION}/key/bias", f"{_ATTENTION}/value/bias"), flat),
    Rule("attn_pool.proj.weight", f"{_ATTENTION}/out/kernel", out_heads_to_heads_out),
    Rule("attn_pool.proj.bias", f"{_ATTENTION}/out/bias"),
    Rule("attn_pool.norm.weight", f"{_HEAD}/norm/scale"),
    Rule("attn_pool.norm.bias", f"{_HEAD}/norm/bias"),
    Rule("attn_pool.mlp.fc1.weight", f"{_HEAD}/mlp/fc1/kernel", out_in_to_in_out),
    Rule("attn_pool.mlp.fc1.bias", f"{_HEAD}/mlp/fc1/bias"),
    Rule("attn_pool.mlp.fc2.weight", f"{_HEAD}/mlp/fc2/kernel", out_in_to_in_out),
    Rule("attn_pool.mlp.fc2.bias", f"{_HEAD}/mlp/fc2/bias"),
)
SIGLIP_RULES = (Rule("pos_embed", "image/position_embedding", one_in_front), *BLOCKS, *MLP, *HEAD)
CLIP_RULES = (
    Rule("cls_token", "image/class_token", two_in_front),
    Rule("pos_embed", "image/position_embedding", one_in_front),
    Rule("norm_pre.weight", "image/pre_norm/scale"),
    Rule("norm_pre.bias", "image/pre_norm/bias"),
    *BLOCKS,
    *MLP,
    Rule("head.weight", "image/projection/kernel", out_in_to_in_out),
    Rule("head.bias", "image/projection/bias"),
)
# (width, patch, pixels) of the SigLIP towers that timm runs with the tanh GELU; it runs the others with the exact one.
_TANH = {
    (768, 32, 256),
    (1024, 16, 512),
    *((1152, 16, px) for px in (256, 384, 512)),
    *((1536, 16, px) for px in (256, 384)),
}


def siglip_activation(width: int, patch: int, pixels: int) -> Activation:
    """The GELU that timm gives a SigLIP tower of this shape."""
    return "gelu_tanh" if (width, patch, pixels) in _TANH else "gelu"


def siglip_image(given: Given) -> ImageSpec:
    """A SigLIP image tower in timm's names, from its shapes. 378 and 384 px hold as many patches of 14: the catalog decides."""
    width, _, patch, _ = given.shape("patch_embed.proj.weight", 4)
    pixels = given.side(given.shape("pos_embed", 3)[1]) * patch
    if given.row is not None and given.row.spec is not None and given.row.spec.image.grid == pixels // patch:
        pixels = given.row.spec.image.image_size
    blocks = BlockSpec(
        width=width,
        num_blocks=given.count("blocks.*.norm1.weight"),
        num_heads=num_heads(width),
        mlp_width=given.shape("blocks.0.mlp.fc1.weight", 2)[0],
        activation=siglip_activation(width, patch, pixels),
        norm_eps=1e-6,
    )
    return ImageSpec(pixels, patch, blocks, class_token=False, pooling="map")


def _siglip_spec(given: Given) -> EncoderSpec:
    image = siglip_image(given)
    return EncoderSpec(given.name, "siglip", image, families.siglip_preprocessing(image.image_size, "bicubic"))


def _dinov2_spec(given: Given) -> EncoderSpec:
    registers = given.shape("reg_token", 3)[1] if given.has("reg_token") else 0
    inner = given.shape("blocks.0.mlp.fc2.weight", 2)[1]
    spec = dinov2_spec(
        given,
        registers=registers,
        rows_before_patches=0 if registers else 1,
        gated=given.shape("blocks.0.mlp.fc1.weight", 2)[0] == 2 * inner,
        mlp_width=inner,
    )
    return dataclasses.replace(spec, image=dataclasses.replace(spec.image, position_interpolation="bicubic_antialias"))


def clip_image(given: Given, activation: Activation) -> ImageSpec:
    """A CLIP image tower in timm's names, from its shapes."""
    width, _, patch, _ = given.shape("patch_embed.proj.weight", 4)
    size = (
        width,
        given.count("blocks.*.norm1.weight"),
        num_heads(width),
        given.shape("blocks.0.mlp.fc1.weight", 2)[0],
    )
    return ImageSpec(
        given.side(given.shape("pos_embed", 3)[1] - 1) * patch,
        patch,
        families.blocks(size, activation, 1e-5),
        class_token=True,
        pooling="class",
        patch_bias=False,
        pre_norm=True,
        projection=given.shape("head.weight", 2)[0],
        projection_bias=given.has("head.bias"),
    )


def _clip_spec(given: Given) -> EncoderSpec:
    if given.row is None or given.row.spec is None:
        raise UserError(
            f"{given.name} is a CLIP in timm's names, which does not say which GELU it was trained with; "
            "name its row of the catalog with --name, e.g. --name openai/clip-vit-base-patch16"
        )
    image, wanted = clip_image(given, given.row.spec.image.blocks.activation), given.row.spec.image.projection
    outputs, pixels = image.projection, image.image_size
    if outputs != wanted or given.has("head.bias"):
        raise UserError(
            f"{given.name}: head.weight has {outputs} outputs{' and a bias' if given.has('head.bias') else ''}, {given.row.huggingface} "
            f"projects to {wanted} without one; this is a classifier on the tower, whose features are not the encoder's"
        )
    pictures = dataclasses.replace(given.row.spec.preprocessing, image_size=pixels, resize_size=pixels)
    return EncoderSpec(given.name, "clip", image, pictures)


_IGNORED = ("mask_token",)
FORMATS = (
    Format("timm SigLIP", ("attn_pool.latent", "blocks.*.attn.qkv.weight"), SIGLIP_RULES, _siglip_spec),
    Format("timm CLIP", ("cls_token", "norm_pre.weight", "blocks.*.attn.qkv.weight"), CLIP_RULES, _clip_spec),
    *(
        Format(
            f"timm DINOv2{title}",
            ("cls_token", "blocks.*.ls1.gamma", *marks),
            rules,
            _dinov2_spec,
            ignored=_IGNORED,
            unless=("head.weight",),  # a classifier on the class token: a plain ViT's
        )
        for title, marks, rules in (
            (" with registers", ("reg_token",), DINOV2_REGISTER_RULES),
            ("", (), DINOV2_RULES),
        )
    ),
)
