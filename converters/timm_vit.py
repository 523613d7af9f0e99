"""Plain ViTs in timm's names (augreg, DeiT, DeiT III, MAE, DINO; Meta's own files of the last three have the same), with their classifier.

The activation (exact GELU), the epsilon (1e-6) and heads of 64 are timm's for all of them; `config.json` says how pictures are
prepared, else a row of the catalog does."""

from __future__ import annotations

import math

from regcache_jax.converters.engine import (
    Rule,
    StoredTensor,
    one_in_front,
    out_in_to_in_out,
    two_in_front,
    without_class_row,
)
from regcache_jax.converters.formats import Format, Given, filter_of, num_heads, section, three_numbers
from regcache_jax.converters.labels import count_classes
from regcache_jax.converters.meta_dinov2 import BLOCKS, MLP

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec, Preprocessing

PATCHES_ALONE = "pos_embed (of patches alone)"
"""Our name for a table without a row for the class token, which is DeiT III's: it is square, and with such a row it never is."""
RULES = (
    Rule("cls_token", "image/class_token", two_in_front),
    Rule("pos_embed", "image/position_embedding", one_in_front),
    Rule(PATCHES_ALONE, "image/position_embedding", without_class_row),
    *BLOCKS,
    Rule("fc_norm.weight", "image/final_norm/scale"),
    Rule("fc_norm.bias", "image/final_norm/bias"),
    *MLP,
    Rule("head.weight", "classifier/kernel", out_in_to_in_out),
    Rule("head.bias", "classifier/bias"),
)


def spec(given: Given) -> EncoderSpec:
    """The spec of a ViT in timm's names, from its shapes. Raises UserError for what is pooled otherwise, and where nobody says how
    pictures are prepared."""
    _refuse_other_pooling(given)
    width, _, patch, _ = given.shape("patch_embed.proj.weight", 4)
    if given.has(PATCHES_ALONE):
        grid = given.side(given.shape(PATCHES_ALONE, 3)[1])
    else:
        grid = given.side(given.shape("pos_embed", 3)[1] - 1)
    pictures = preprocessing(given, grid * patch)
    image = ImageSpec(
        grid * patch,
        patch,
        BlockSpec(
            width=width,
            num_blocks=given.count("blocks.*.norm1.weight"),
            num_heads=num_heads(width),
            mlp_width=given.shape("blocks.0.mlp.fc1.weight", 2)[0],
            activation="gelu",
            norm_eps=1e-6,
            layer_scale=given.has("blocks.*.ls1.gamma"),
            qkv_bias="qkv" if given.has("blocks.*.attn.qkv.bias") else "none",
        ),
        class_token=True,
        pooling="normed_mean" if given.has("fc_norm.weight") else "class",
        position_interpolation="bicubic_antialias",
    )
    return EncoderSpec(
        given.name, "vit", image, pictures, normalize=False, num_classes=count_classes(given, "head.weight")
    )


def with_named_positions(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors with a table of positions of patches alone under a name of its own."""
    table = tensors.get("pos_embed")
    if table is None or len(table.shape) != 3 or math.isqrt(table.shape[1]) ** 2 != table.shape[1]:
        return tensors
    return {PATCHES_ALONE if name == "pos_embed" else name: tensor for name, tensor in tensors.items()}


def _refuse_other_pooling(given: Given) -> None:
    held, how = ("avg", "the mean, a norm behind it") if given.has("fc_norm.weight") else ("token", "its class token")
    if given.config.get("global_pool", held) != held:
        told = shown(repr(given.config["global_pool"]))
        raise UserError(
            f"{given.name} is pooled by {how} (global_pool {held}), going by its tensors; config.json says {told}"
        )
    if given.has("dist_token"):
        raise UserError(f"{given.name} is a distilled DeiT with a second class token, which is not supported yet")


def preprocessing(given: Given, pixels: int) -> Preprocessing:
    """`pretrained_cfg` of timm's config.json in our words, else the catalog row's.

    Raises UserError for pictures of another size than the tower's, and for what our preprocessing cannot do."""
    told = section(given.config, "pretrained_cfg", "config.json")
    if not told:
        if given.row is None or given.row.spec is None:
            raise UserError(
                f"{given.name} is a ViT in timm's names without config.json, which says how its pictures are prepared; put it beside the "
                "weights, or name its row of the catalog with --name, e.g. --name timm/vit_base_patch16_224.augreg_in21k_ft_in1k"
            )
        return given.row.spec.preprocessing
    size, share = told.get("input_size"), told.get("crop_pct", 0.875)
    if not isinstance(size, list) or size != [3, pixels, pixels]:
        raise UserError(
            f"{given.name} takes pictures of {pixels} px by its positions, config.json says input_size {shown(repr(size))}; one "
            "of the files is of another model"
        )
    filter, mode = filter_of(told.get("interpolation", "bicubic")), told.get("crop_mode", "center")
    if filter is None or mode not in ("center", "squash") or type(share) not in (int, float) or not 0.1 <= share <= 1:
        raise UserError(
            f"config.json: interpolation should be bicubic or bilinear, crop_mode center or squash, crop_pct 0.1..1; got "
            f"{told.get('interpolation')!r}, {mode!r}, {share!r}"
        )
    mean, std = (
        three_numbers(told.get(key, default), f"config.json: {key}")
        for key, default in (("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225]))
    )
    return Preprocessing(
        pixels, "shortest" if mode == "center" else "squash", filter, math.floor(pixels / share), mean, std
    )


FORMAT = Format(
    name="timm ViT",
    marks=("cls_token", "pos_embed*", "blocks.*.attn.qkv.weight"),
    rules=RULES,
    spec=spec,
    ignored=("mask_token",),
    heads=("decoder_*",),
    repair=with_named_positions,
)
