"""dino.txt (2412.16334): a DINOv3 with texts. Two further blocks behind the trunk's final norm; a picture's feature is their class token
beside the mean of their patches."""

from __future__ import annotations

import dataclasses

from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec, TextSpec
from regcache_jax.encoders.families import (
    CLIP_END,
    DINOV3_EPS,
    EXACT_GELU,
    blocks,
    clip_tokenization,
    dinov2_preprocessing,
    dinov3_spec,
)
from regcache_jax.encoders.rows import NEXT, Row

FILE = "dinov3_vitl16_dinotxt_vision_head_and_text_encoder-a442d8f5"


def further_blocks(trunk: BlockSpec, count: int, mlp_width: int) -> BlockSpec:
    """The blocks behind a trunk: SwiGLU, LayerScale, no biases of queries, keys and values, no positions."""
    size = (trunk.width, count, trunk.num_heads, mlp_width)
    return blocks(size, "silu", DINOV3_EPS, layer_scale=True, gated_mlp=True, qkv_bias="none")


def dinotxt_text(width: int, count: int, mlp_width: int, context: int, vocab: int, out: int) -> TextSpec:
    """The text tower: CLIP's, with heads of 64 and without biases of queries, keys and values."""
    size = (width, count, max(1, width // 64), mlp_width)
    stack = blocks(size, EXACT_GELU, DINOV3_EPS, causal=True, qkv_bias="none")
    return TextSpec(vocab, context, stack, "argmax", eot_id=vocab - 1, projection=out)


def dinotxt_spec(name: str, trunk: ImageSpec, further: BlockSpec, text: TextSpec) -> EncoderSpec:
    """A dino.txt around a trunk. Pictures as Meta's evaluation makes them."""
    image = dataclasses.replace(trunk, pooling="class_mean", further=further)
    words = clip_tokenization(text.context_length, text.vocab_size)
    return EncoderSpec(name, "dinov3", image, dinov2_preprocessing(trunk.image_size), text, words)


def dinotxt_row() -> Row:
    """The one that Meta published."""
    trunk = dinov3_spec("trunk", "L", gated=False).image
    text = dinotxt_text(1280, 24, 5120, 77, CLIP_END + 1, 2 * trunk.blocks.width)
    name = "dinov3_vitl16_dinotxt"
    spec = dinotxt_spec(name, trunk, further_blocks(trunk.blocks, 2, 2752), text)
    others = (f"{name}_tet1280d20h24l", FILE, f"{FILE}.pth")
    return Row(name, "dino.txt", spec, others=others, image_parameters=328.48, text_parameters=538.13, since=NEXT)
