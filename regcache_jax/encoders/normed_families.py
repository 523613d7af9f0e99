"""Families whose blocks have other norms than two LayerNorms, and their rows: AIMv2, InternViT, EVA-02-CLIP; and Qwen3-VL's tower, which
ends without one."""

from __future__ import annotations

import dataclasses

from regcache_jax.core.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BlockSpec,
    EncoderSpec,
    ImageSpec,
    Preprocessing,
    Rotary,
    TextSpec,
)
from regcache_jax.encoders.families import (
    EXACT_GELU,
    blocks,
    clip_preprocessing,
    clip_text,
    clip_tokenization,
    siglip_preprocessing,
)
from regcache_jax.encoders.rows import CLIP_TEXTS, NEXT, Figures, Row

AIMV2_HEAD = 128
_AIMV2 = {
    "large": (1024, 24, 8, 2816),
    "huge": (1536, 24, 12, 4096),
    "1B": (2048, 24, 16, 5632),
    "3B": (3072, 24, 24, 8192),
    "text": (768, 12, 6, 2048),
}


def aimv2_blocks(size: tuple[int, int, int, int], causal: bool = False) -> BlockSpec:
    """The blocks of an AIMv2: RMSNorm, SwiGLU, no biases."""
    return blocks(size, "silu", 1e-5, gated_mlp=True, causal=causal, qkv_bias="none", bias=False, norm="rms")


def aimv2_image(stack: BlockSpec, patch: int, pixels: int) -> ImageSpec:
    """The image tower of an AIMv2, whose patches are read."""
    return ImageSpec(pixels, patch, stack, class_token=False, pooling="none", patch_norm=True)


def aimv2_spec(name: str, image: ImageSpec, pictures: Preprocessing, text: TextSpec | None = None) -> EncoderSpec:
    """An AIMv2; with texts pictures are pooled by a learned query, and projected."""
    if text is None:
        return EncoderSpec(name, "aimv2", image, pictures, normalize=False)
    image = dataclasses.replace(image, pooling="probe", projection=text.projection)
    words = clip_tokenization(text.context_length, text.vocab_size, pad_id=text.vocab_size - 1)
    return EncoderSpec(name, "aimv2", image, pictures, text, words)


def aimv2_row(size: str, pixels: int, parameters: float, ending: str = "") -> Row:
    """An AIMv2 of Apple's, by its hub id and timm's name."""
    image = aimv2_image(aimv2_blocks(_AIMV2[size]), 14, pixels)
    name = f"aimv2-{size}-patch14-{pixels}{ending}"
    text = TextSpec(49408, 77, aimv2_blocks(_AIMV2["text"], causal=True), "eot", eot_id=49407, projection=768)
    spec = aimv2_spec(name, image, clip_preprocessing(pixels), text if ending == "-lit" else None)
    timm = f"aimv2_{size.lower()}_patch14_{pixels}.apple_pt{'_dist' if ending == '-distilled' else ''}"
    others = () if spec.text else (timm, f"timm/{timm}")
    texts = 123.55 if spec.text else None
    return Row(f"apple/{name}", "AIMv2", spec, None, None, None, others, parameters, texts, since=NEXT)


def internvit_spec(
    name: str, depth: int = 45, pixels: int = 448, large: bool = False, squashed: bool = False
) -> EncoderSpec:
    """InternViT: a plain ViT with LayerScale and no final norm, whose patches are read. The 6B (`large`, of so many blocks) has RMSNorm,
    norms of queries and keys over the whole width, and no biases of queries, keys and values. `squashed`: as InternVL takes a tile."""
    stack = blocks("L", EXACT_GELU, 1e-6, layer_scale=True)
    if large:
        six = (3200, depth, 25, 12_800)
        stack = blocks(six, EXACT_GELU, 1e-6, layer_scale=True, qkv_bias="none", norm="rms", qk_norm="width")
    image = ImageSpec(pixels, 14, stack, class_token=True, pooling="none", final_norm=False)
    pictures = clip_preprocessing(pixels, IMAGENET_MEAN, IMAGENET_STD)
    pictures = dataclasses.replace(pictures, resize="squash") if squashed else pictures
    return EncoderSpec(name, "vit", image, pictures, normalize=False)


def eva_image(size: tuple[int, int, int, int], patch: int, pixels: int, out: int) -> ImageSpec:
    """The image tower of an EVA-02-CLIP: SwiGLU, norms inside attention and MLP, rotary positions of a 16 x 16 grid beside a table."""
    rotary = Rotary(10_000.0, "interleaved", coordinates="integer", reference=16)
    stack = blocks(size, "silu", 1e-6, gated_mlp=True, qkv_bias="qv", rotary=rotary, inner_norms=True)
    return ImageSpec(
        pixels,
        patch,
        stack,
        class_token=True,
        pooling="class",
        projection=out,
        projection_bias=True,
        position_interpolation="bicubic_antialias",
    )


def eva_spec(name: str, image: ImageSpec, text: TextSpec | None = None) -> EncoderSpec:
    """An EVA-02-CLIP: pictures and texts as CLIP takes them."""
    words = None if text is None else clip_tokenization(text.context_length, text.vocab_size)
    return EncoderSpec(name, "clip", image, clip_preprocessing(image.image_size), text, words)


def eva_row(open_clip: tuple[str, str], shape: tuple[int, int], figures: Figures) -> Row:
    """An EVA-02-CLIP by open_clip's model and tag: B or L, with a text tower of the same size."""
    (model, tag), (patch, pixels) = open_clip, shape
    letter = model.split("-")[1]
    size, word = {"B": ((768, 12, 12, 2048), "base"), "L": ((1024, 24, 16, 2730), "large")}[letter]
    text, out = CLIP_TEXTS[letter]
    name = f"eva02_{word}_patch{patch}_clip_{pixels}"
    spec = eva_spec(name, eva_image(size, patch, pixels, out), clip_text(text, out))
    others = (name, f"{name}.{tag}", f"timm/{name}.{tag}")
    return Row(f"timm/{name}", "EVA-02", spec, None, open_clip, None, others, *figures, since=NEXT)


def qwen_spec(name: str, size: str | tuple[int, int, int, int], patch: int = 16, pixels: int = 768) -> EncoderSpec:
    """The tower of a Qwen3-VL: rotary positions beside a table that is resampled from corner to corner, no final norm, patches read.
    Qwen's processor keeps the shape of a picture; here it is squashed."""
    stack = blocks(size, "gelu_tanh", 1e-6, rotary=Rotary(10_000.0, coordinates="integer"))
    image = ImageSpec(
        pixels,
        patch,
        stack,
        class_token=False,
        pooling="none",
        position_interpolation="bilinear",
        final_norm=False,
    )
    return EncoderSpec(name, "vit", image, siglip_preprocessing(pixels, "bicubic"), normalize=False)
