"""C-RADIO: plain ViTs with several class tokens, whose states side by side are the feature, and trained registers behind them."""

from __future__ import annotations

from regcache_jax.core.spec import CLIP_MEAN, CLIP_STD, EncoderSpec, ImageSpec, Preprocessing
from regcache_jax.encoders.families import EXACT_GELU, blocks
from regcache_jax.encoders.rows import NEXT, Row

PIXELS = 512
"""A side of the pictures that all of them prefer."""


def radio_spec(
    name: str,
    size: str | tuple[int, int, int, int],
    classes: int,
    tokens: int,
    *,
    patch: int = 16,
    pixels: int = PIXELS,
    grid: int = 128,
    final_norm: bool = False,
) -> EncoderSpec:
    """A C-RADIO with `tokens` tokens in front, of which the first `classes` are read. Positions, of patches alone, are a table of `grid` x
    `grid`, squeezed into the picture's grid (a picture that is no square has the corner of a square's: `cropped`, which is not needed for
    squares)."""
    stack = blocks(size, EXACT_GELU, 1e-6)
    image = ImageSpec(
        pixels,
        patch,
        stack,
        class_token=True,
        pooling="class",
        trained_registers=tokens - 1,
        patch_bias=False,
        position_grid=grid,
        position_interpolation="bilinear_centres",
        final_norm=final_norm,
        summary_tokens=classes,
    )
    pictures = Preprocessing(pixels, "squash", "bicubic", pixels, CLIP_MEAN, CLIP_STD)
    return EncoderSpec(name, "vit", image, pictures, normalize=False)


def radio_row(version: int, letter: str, size: str | tuple[int, int, int, int], classes: int, tokens: int) -> Row:
    """A C-RADIO by its hub id and the name that torch hub knows."""
    name = f"C-RADIOv{version}-{letter}"
    spec = radio_spec(name, size, classes, tokens)
    return Row(f"nvidia/{name}", "C-RADIO", spec, others=(f"c-radio_v{version}-{letter.lower()}",), since=NEXT)
