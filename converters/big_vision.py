"""big_vision's SigLIP and SigLIP 2 (`.npz`), block by block or scanned, whole or one part of a file (`:img`, `:txt`)."""

from __future__ import annotations

import dataclasses

import numpy as np
from regcache_jax.converters.engine import Rule, StoredTensor, one_in_front, two_in_front
from regcache_jax.converters.formats import Format, Given

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec, TextSpec
from regcache_jax.encoders import families


def blocks(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A tower's encoder; head-major as ours, so nothing is rearranged. `theirs` is the name of a block."""
    attention, mlp = f"{theirs}/MultiHeadDotProductAttention_0", f"{theirs}/MlpBlock_0"
    parts = (("query", "query"), ("key", "key"), ("value", "value"), ("out", "out"))
    return (
        Rule(f"{theirs}/LayerNorm_0/scale", f"{ours}/norm1/scale"),
        Rule(f"{theirs}/LayerNorm_0/bias", f"{ours}/norm1/bias"),
        *(
            Rule(f"{attention}/{their}/{leaf}", f"{ours}/attention/{our}/{leaf}")
            for their, our in parts
            for leaf in _LEAVES
        ),
        Rule(f"{theirs}/LayerNorm_1/scale", f"{ours}/norm2/scale"),
        Rule(f"{theirs}/LayerNorm_1/bias", f"{ours}/norm2/bias"),
        *(
            Rule(f"{mlp}/Dense_{layer}/{leaf}", f"{ours}/mlp/fc{layer + 1}/{leaf}")
            for layer in (0, 1)
            for leaf in _LEAVES
        ),
    )


_LEAVES = ("kernel", "bias")
_HEAD, _MAP = "image/head", "img/MAPHead_0"


def rules(block: str) -> tuple[Rule, ...]:
    """The table; `block` is `encoderblock_*`, or `encoderblock` where the file has all blocks stacked, as we have."""
    return (
        Rule("img/embedding/kernel", "image/patch_embedding/kernel"),
        Rule("img/embedding/bias", "image/patch_embedding/bias"),
        Rule("img/pos_embedding", "image/position_embedding", one_in_front),
        *blocks(f"img/Transformer/{block}", "image/blocks"),
        Rule("img/Transformer/encoder_norm/scale", "image/final_norm/scale"),
        Rule("img/Transformer/encoder_norm/bias", "image/final_norm/bias"),
        Rule(f"{_MAP}/probe", f"{_HEAD}/probe", two_in_front),
        *(
            Rule(f"{_MAP}/MultiHeadDotProductAttention_0/{part}/{leaf}", f"{_HEAD}/attention/{part}/{leaf}")
            for part in ("query", "key", "value", "out")
            for leaf in _LEAVES
        ),
        Rule(f"{_MAP}/LayerNorm_0/scale", f"{_HEAD}/norm/scale"),
        Rule(f"{_MAP}/LayerNorm_0/bias", f"{_HEAD}/norm/bias"),
        *(
            Rule(f"{_MAP}/MlpBlock_0/Dense_{layer}/{leaf}", f"{_HEAD}/mlp/fc{layer + 1}/{leaf}")
            for layer in (0, 1)
            for leaf in _LEAVES
        ),
        Rule("img/head/kernel", "image/projection/kernel"),
        Rule("img/head/bias", "image/projection/bias"),
        Rule("txt/Embed_0/embedding", "text/token_embedding"),
        Rule("txt/pos_embedding", "text/position_embedding", one_in_front),
        *blocks(f"txt/Encoder_0/{block}", "text/blocks"),
        Rule("txt/Encoder_0/encoder_norm/scale", "text/final_norm/scale"),
        Rule("txt/Encoder_0/encoder_norm/bias", "text/final_norm/bias"),
        Rule("txt/head/kernel", "text/projection/kernel"),
        Rule("txt/head/bias", "text/projection/bias"),
        Rule("t", "logit_scale", one_in_front),
        Rule("b", "logit_bias", one_in_front),
    )


def repair(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """What big_vision's own loaders put right in early files: the position table of the encoder, which is moved out of it
    (image) or added to the one outside (text)."""
    tensors = dict(tensors)
    inside = tensors.pop("img/Transformer/pos_embedding", None)
    if inside is not None:
        tensors["img/pos_embedding"] = inside
    twice, once = tensors.pop("txt/Encoder_0/pos_embedding", None), tensors.get("txt/pos_embedding")
    if twice is not None and once is not None:
        tensors["txt/pos_embedding"] = dataclasses.replace(once, read=lambda: np.add(once.read(), twice.read()))
    return tensors


def block_spec(given: Given, tower: str) -> BlockSpec:
    """The blocks of a tower; head-major kernels show everything."""
    scanned = given.has(f"{tower}/encoderblock/*")
    block = f"{tower}/encoderblock" if scanned else f"{tower}/encoderblock_0"
    stacked = int(scanned)
    kernel = given.shape(f"{block}/MultiHeadDotProductAttention_0/query/kernel", 3 + stacked)
    return BlockSpec(
        width=kernel[stacked],
        num_blocks=kernel[0] if scanned else given.count(f"{tower}/encoderblock_*/LayerNorm_0/scale"),
        num_heads=kernel[stacked + 1],
        mlp_width=given.shape(f"{block}/MlpBlock_0/Dense_0/kernel", 2 + stacked)[stacked + 1],
        activation="gelu_tanh",
        norm_eps=1e-6,
    )


def spec(given: Given) -> EncoderSpec:
    """The spec of a file, from its shapes. 378 and 384 px hold as many patches of 14: the file's name decides."""
    if given.has("img/cls"):
        raise UserError(
            f"{given.name} has a class token; of big_vision's encoders SigLIP and SigLIP 2 can be converted"
        )
    patch = given.shape("img/embedding/kernel", 4)[0]
    grid = given.side(given.shape("img/pos_embedding", 3)[1])
    pixels = grid * patch
    if given.row is not None and given.row.spec is not None and given.row.spec.image.grid == grid:
        pixels = given.row.spec.image.image_size
    has_projection = given.has("img/head/kernel")
    image = ImageSpec(
        image_size=pixels,
        patch_size=patch,
        blocks=block_spec(given, "img/Transformer"),
        class_token=False,
        pooling="map" if given.has(f"{_MAP}/probe") else "mean",
        projection=given.shape("img/head/kernel", 2)[1] if has_projection else None,
        projection_bias=has_projection,
    )
    pictures = families.siglip_preprocessing(pixels, "bilinear_tf")
    if not given.has("txt/*"):
        return EncoderSpec(given.name, "siglip", image, pictures)
    vocabulary, _ = given.shape("txt/Embed_0/embedding", 2)
    context = given.shape("txt/pos_embedding", 3)[1]
    has_head = given.has("txt/head/kernel")
    towers = TextSpec(
        vocab_size=vocabulary,
        context_length=context,
        blocks=block_spec(given, "txt/Encoder_0"),
        pooling="last",
        eot_id=1,
        projection=given.shape("txt/head/kernel", 2)[1] if has_head else None,
        projection_bias=has_head,
    )
    tokenization = families.siglip_tokenization(context, vocabulary)
    tokenization = dataclasses.replace(
        tokenization, cleaning="lower_ascii" if tokenization.cleaning == "lower" else "canonicalize"
    )
    return EncoderSpec(given.name, "siglip", image, pictures, towers, tokenization)


_PREFIXES = (("params/", ""),)
_IGNORED = ("opt/*", "opt_state/*", "extra")
FORMATS = (
    Format(
        "big_vision",
        ("img/embedding/kernel", "img/Transformer/encoderblock_0/*"),
        rules("encoderblock_*"),
        spec,
        prefixes=_PREFIXES,
        ignored=_IGNORED,
        repair=repair,
    ),
    Format(
        "big_vision scanned",
        ("img/embedding/kernel", "img/Transformer/encoderblock/*"),
        rules("encoderblock"),
        spec,
        prefixes=_PREFIXES,
        ignored=_IGNORED,
        repair=repair,
    ),
)
