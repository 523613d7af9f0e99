"""The families whose checkpoints are known: what all encoders of one have in common, as specs of a few numbers each."""

from __future__ import annotations

import dataclasses
from typing import Any

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Activation,
    BlockSpec,
    EncoderSpec,
    Filter,
    ImageSpec,
    Preprocessing,
    Rotary,
    TextSpec,
    Tokenization,
)

CLIP_START, CLIP_END = 49406, 49407
EXACT_GELU: Activation = "gelu"
QUICK_GELU: Activation = "quick_gelu"
TANH_GELU: Activation = "gelu_tanh"

# width, blocks, heads, MLP width
SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "B+": (896, 12, 14, 3584),
    "L": (1024, 24, 16, 4096),
    "So400m": (1152, 27, 16, 4304),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "g-opt": (1536, 40, 16, 6144),
    "g/14": (1536, 40, 24, 4096),
    "H+": (1280, 32, 20, 5120),
    "7B": (4096, 40, 32, 8192),
    "bigG": (1664, 48, 16, 8192),
    "PE G": (1536, 50, 16, 8960),
    "clip text B": (512, 12, 8, 2048),
    "clip text B+": (640, 12, 10, 2560),
    "clip text L": (768, 12, 12, 3072),
    "clip text H": (1024, 24, 16, 4096),
    "clip text bigG": (1280, 32, 20, 5120),
    "PE text G": (1280, 24, 20, 5120),
}

NAFLEX_PATCHES = 256
"""At most, where nothing says how many."""
DINOV3_EPS, DINOV3_ROTARY = 1e-5, Rotary(100.0)
TIPS_PATCH = 14
SAT_MEAN, SAT_STD = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)
"""Of the DINOv3 that saw satellite pictures."""

Shape = tuple[str, int, int]
"""A named size, pixels of a patch, pixels of a picture."""


def blocks(size: str | tuple[int, int, int, int], activation: Activation, eps: float, **options: Any) -> BlockSpec:
    """A stack of blocks of a named size."""
    width, num_blocks, num_heads, mlp_width = SIZES[size] if isinstance(size, str) else size
    return BlockSpec(width, num_blocks, num_heads, mlp_width, activation, eps, **options)


def clip_preprocessing(pixels: int, mean: tuple = CLIP_MEAN, std: tuple = CLIP_STD) -> Preprocessing:
    """Shortest side to `pixels`, bicubic, centre crop."""
    return Preprocessing(pixels, "shortest", "bicubic", pixels, mean, std)


def siglip_preprocessing(pixels: int, filter: Filter) -> Preprocessing:
    """Squashed to a square, -1..1."""
    return Preprocessing(pixels, "squash", filter, pixels, HALF, HALF)


def dinov2_preprocessing(pixels: int) -> Preprocessing:
    """Shortest side to 256/224 of `pixels`, bicubic, centre crop."""
    return Preprocessing(pixels, "shortest", "bicubic", round(pixels * 256 / 224), IMAGENET_MEAN, IMAGENET_STD)


def dinov3_preprocessing(pixels: int = 224, satellite: bool = False) -> Preprocessing:
    """Squashed to a square, bilinear. 224 px as transformers; Meta's README has 256."""
    mean, std = (SAT_MEAN, SAT_STD) if satellite else (IMAGENET_MEAN, IMAGENET_STD)
    return Preprocessing(pixels, "squash", "bilinear", pixels, mean, std)


def vit_preprocessing(pixels: int) -> Preprocessing:
    """Squashed to a square, bilinear, -1..1: transformers' for ViTs that were trained with augreg."""
    return Preprocessing(pixels, "squash", "bilinear", pixels, HALF, HALF)


def timm_preprocessing(pixels: int, mean: tuple = HALF, std: tuple = HALF) -> Preprocessing:
    """Shortest side to `pixels` / 0.9 (at 224; larger pictures are not cropped), bicubic, centre crop: timm's for plain ViTs."""
    side = int(pixels / 0.9) if pixels == 224 else pixels
    return Preprocessing(pixels, "shortest", "bicubic", side, mean, std)


def clip_tokenization(context_length: int = 77, vocab_size: int = 49408, pad_id: int = 0) -> Tokenization:
    """CLIP's byte pairs between start and end; padded with 0 (open_clip) or with the end id (Hugging Face): read by neither."""
    return Tokenization("clip", context_length, vocab_size, "clip", pad_id, vocab_size - 2, vocab_size - 1)


def siglip_tokenization(context_length: int, vocab_size: int) -> Tokenization:
    """SentencePiece, no start, end 1. SigLIP pads with the end and drops punctuation, SigLIP 2 pads with 0 and lower-cases:
    both as transformers does."""
    gemma = vocab_size == 256_000
    if gemma:
        return Tokenization("sentencepiece", context_length, vocab_size, "lower", pad_id=0, eos_id=1)
    return Tokenization("sentencepiece", context_length, vocab_size, "drop_punctuation", pad_id=1, eos_id=1)


def metaclip2_tokenization(end: int, context_length: int, vocab_size: int) -> Tokenization:
    """The tokenizers of MetaCLIP 2, by the id that ends a text: XLM-V's (2), or mT5's (1) in its small models. Raises UserError for
    another."""
    if end == 2:
        return Tokenization("xlm", context_length, vocab_size, "none", pad_id=1, bos_id=0, eos_id=2)
    if end == 1:
        return Tokenization("sentencepiece", context_length, vocab_size, "none", pad_id=0, eos_id=1)
    raise UserError(f"texts of a MetaCLIP 2 end with the id 2 (XLM-V's tokenizer) or 1 (mT5's), got {end}")


def clip_text(
    size: str | tuple[int, int, int, int],
    out: int,
    context: int = 77,
    vocab: int = 49408,
    activation: Activation = EXACT_GELU,
    causal: bool = True,
) -> TextSpec:
    """CLIP's text tower, read at the largest id."""
    stack = blocks(size, activation, 1e-5, causal=causal)
    return TextSpec(vocab, context, stack, "argmax", eot_id=vocab - 1, projection=out)


def with_metaclip2_words(spec: EncoderSpec, end: int) -> EncoderSpec:
    """A CLIP whose texts are MetaCLIP 2's, read at their first `end`."""
    assert spec.text is not None
    words = metaclip2_tokenization(end, spec.text.context_length, spec.text.vocab_size)
    return dataclasses.replace(spec, text=dataclasses.replace(spec.text, pooling="eot", eot_id=end), tokenization=words)


def clip_spec(name: str, shape: Shape, text: str, out: int, activation: Activation) -> EncoderSpec:
    """A CLIP as OpenAI and LAION trained them."""
    size, patch, pixels = shape
    return EncoderSpec(
        name=name,
        family="clip",
        image=ImageSpec(
            pixels,
            patch,
            blocks(size, activation, 1e-5),
            class_token=True,
            pooling="class",
            patch_bias=False,
            pre_norm=True,
            projection=out,
        ),
        preprocessing=clip_preprocessing(pixels),
        text=clip_text(text, out, activation=activation),
        tokenization=clip_tokenization(),
    )


def siglip_spec(name: str, shape: Shape, vocab: int, text: str | None = None, context: int = 64) -> EncoderSpec:
    """A SigLIP or SigLIP 2 of fixed resolution."""
    size, patch, pixels = shape
    image = blocks(size, TANH_GELU, 1e-6)
    return EncoderSpec(
        name=name,
        family="siglip",
        image=ImageSpec(pixels, patch, image, class_token=False, pooling="map"),
        preprocessing=siglip_preprocessing(pixels, "bilinear" if vocab == 256_000 else "bicubic"),
        text=TextSpec(
            vocab,
            context,
            blocks(text or size, TANH_GELU, 1e-6),
            "last",
            eot_id=1,
            projection=image.width,
            projection_bias=True,
        ),
        tokenization=siglip_tokenization(context, vocab),
    )


def pe_image(
    size: str | tuple[int, int, int, int],
    patch: int,
    pixels: int,
    *,
    class_token: bool,
    layer_scale: bool = False,
    out: int | None = None,
) -> ImageSpec:
    """A Perception Encoder's image tower: rotary positions beside a table of them. Core projects to `out` behind attention pooling, whose
    8 heads and MLP of four widths are those of every size; of the others (None) patches are read as they leave the last block."""
    rotary = Rotary(10_000.0, "interleaved", "columns", "integer", offset=int(class_token))
    stack = blocks(size, EXACT_GELU, 1e-5, layer_scale=layer_scale, rotary=rotary)
    core = out is not None
    return ImageSpec(
        pixels,
        patch,
        stack,
        class_token,
        pooling="map" if core else "none",
        patch_bias=False,
        pre_norm=True,
        projection=out,
        position_interpolation="bilinear_centres",
        final_norm=core,
        head_heads=8 if core else None,
        head_mlp_width=4 * stack.width if core else None,
    )


def pe_spec(name: str, image: ImageSpec, text: TextSpec | None = None) -> EncoderSpec:
    """A Perception Encoder of any kind, with its text tower where it has one."""
    words = None if text is None else clip_tokenization(text.context_length, text.vocab_size)
    return EncoderSpec(name, "pe", image, siglip_preprocessing(image.image_size, "bilinear"), text, words)


def tips_image(size: str | tuple[int, int, int, int], pixels: int, grid: int, gated: bool) -> ImageSpec:
    """The image tower of a TIPS: two class tokens, of which the second stands as a trained register; only patches have positions."""
    activation: Activation = "silu" if gated else TANH_GELU
    return ImageSpec(
        pixels,
        TIPS_PATCH,
        blocks(size, activation, 1e-6, gated_mlp=gated),
        class_token=True,
        pooling="class",
        trained_registers=1,
        position_grid=grid,
        position_interpolation="bilinear_antialias",
    )


def tips_text(size: str | tuple[int, int, int, int], vocab: int = 32_000) -> TextSpec:
    """The text tower of a TIPS: ReLU, sinusoids for positions, the mean of all words."""
    return TextSpec(vocab, 64, blocks(size, "relu", 1e-6), "mean", position_table=False)


def tips_spec(name: str, image: ImageSpec, text: TextSpec | None) -> EncoderSpec:
    """A TIPS: squashed pictures of 0..1, SentencePiece without marks, padded with 0."""
    pixels, words = image.image_size, None
    if text is not None:
        words = Tokenization("sentencepiece", text.context_length, text.vocab_size, "lower_ascii", pad_id=0)
    pictures = Preprocessing(pixels, "squash", "bilinear", pixels, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return EncoderSpec(name, "tips", image, pictures, text, words)


def naflex(spec: EncoderSpec, filter: Filter, max_patches: int = NAFLEX_PATCHES) -> EncoderSpec:
    """A SigLIP 2 whose positions are those of a square picture, made one that takes pictures of any shape."""
    image = dataclasses.replace(
        spec.image,
        blocks=dataclasses.replace(spec.image.blocks, padded=True, activation=TANH_GELU),
        position_interpolation="bilinear_antialias",
        max_patches=max_patches,
    )
    pictures = dataclasses.replace(
        spec.preprocessing,
        resize="patches",
        filter=filter,
        patch_size=image.patch_size,
        max_patches=max_patches,
    )
    return dataclasses.replace(spec, image=image, preprocessing=pictures)


def vit_spec(
    name: str,
    shape: Shape,
    pictures: Preprocessing,
    num_classes: int | None = None,
    *,
    layer_scale: bool = False,
    eps: float = 1e-6,
) -> EncoderSpec:
    """A plain ViT: its feature is the normed class token, on which a classifier may stand."""
    size, patch, pixels = shape
    own = blocks(size, EXACT_GELU, eps, layer_scale=layer_scale)
    image = ImageSpec(pixels, patch, own, class_token=True, pooling="class")
    return EncoderSpec(name, "vit", image, pictures, normalize=False, num_classes=num_classes)


def siglip_tower_spec(name: str, shape: Shape, filter: Filter) -> EncoderSpec:
    """A SigLIP's image tower inside a vision-language model: no pooling, patches after the final norm."""
    size, patch, pixels = shape
    image = ImageSpec(pixels, patch, blocks(size, TANH_GELU, 1e-6), class_token=False, pooling="none")
    return EncoderSpec(name, "siglip", image, siglip_preprocessing(pixels, filter))


def clip_tower_spec(name: str, pictures: Preprocessing) -> EncoderSpec:
    """CLIP L/14-336 inside LLaVA: the patches that leave the last block but one, before the final norm."""
    whole = clip_spec(name, ("L", 14, 336), "clip text L", 768, QUICK_GELU).image
    own = dataclasses.replace(whole.blocks, num_blocks=whole.blocks.num_blocks - 1)
    image = dataclasses.replace(whole, blocks=own, pooling="none", projection=None, final_norm=False)
    return EncoderSpec(name, "clip", image, pictures)


def dinov2_spec(name: str, size: str, registers: int = 0, pixels: int = 224) -> EncoderSpec:
    """A DINOv2: 37 x 37 positions, resampled to the grid of `pixels` as Meta's code does."""
    return EncoderSpec(
        name=name,
        family="dinov2",
        image=ImageSpec(
            pixels,
            14,
            blocks(
                size,
                "silu" if size == "g/14" else EXACT_GELU,
                1e-6,
                layer_scale=True,
                gated_mlp=size == "g/14",
            ),
            class_token=True,
            pooling="class",
            trained_registers=registers,
            position_grid=37,
            position_interpolation="bicubic_antialias" if registers else "bicubic_offset",
        ),
        preprocessing=dinov2_preprocessing(pixels),
        normalize=False,
    )


def dinov3_spec(name: str, size: str, gated: bool, satellite: bool = False) -> EncoderSpec:
    """A DINOv3: rotary positions, four trained registers, no bias of keys, and in the 7B none of queries and values either."""
    stack = blocks(
        size,
        "silu" if gated else EXACT_GELU,
        DINOV3_EPS,
        layer_scale=True,
        gated_mlp=gated,
        qkv_bias="none" if size == "7B" else "qv",
        rotary=DINOV3_ROTARY,
    )
    image = ImageSpec(224, 16, stack, class_token=True, pooling="class", trained_registers=4, position_table=False)
    return EncoderSpec(name, "dinov3", image, dinov3_preprocessing(satellite=satellite), normalize=False)
