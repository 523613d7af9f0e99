"""From a picture to the array a tower takes: PIL-exact resize and crop, as each family was published.

Pictures come as files people have: greyscale, palette, CMYK, 16-bit, with alpha (composited on white), rotated by EXIF.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageOps

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.spec import Preprocessing
from regcache_jax.encoders.resampling import Axis, resize_part
from regcache_jax.encoders.sheets import fitted, sheet_of
from regcache_jax.files.bounded import read_bytes
from regcache_jax.files.pictures import LARGEST_FILE, decoded

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
MOST_RESIZED = 1 << 24
"""Pixels that Pillow may make while it resizes; beyond (of 1 x 2,000,000, say) only what is kept is made, by `resampling`."""


def open_picture(source: Any, name: str | None = None) -> Image.Image:
    """Reads a PIL image, uint8 array, path or bytes into upright RGB. Raises UserError that names what cannot be read.

    `name` stands in the message for a source without one."""
    given = os.fspath(source) if isinstance(source, str | os.PathLike) else "picture"
    name = name or given
    theirs = isinstance(source, Image.Image)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (1,), (3,), (4,)):
            raise UserError(
                f"{name} must be an array [Y, X, 3] (or [Y, X]) of uint8, got {list(source.shape)} of {source.dtype}"
            )
        source = Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source)
    if not isinstance(source, Image.Image):
        source = decoded(source if isinstance(source, bytes) else read_bytes(source, LARGEST_FILE), name)
    try:
        if theirs:
            return to_rgb(ImageOps.exif_transpose(source))
        ImageOps.exif_transpose(source, in_place=True)  # the other way copies upright ones too
        return to_rgb(source)
    except (
        Exception
    ) as error:  # Pillow raises what it likes on damaged EXIF and profiles, and on files that it reads only now
        raise UserError(f"{name} cannot be read as a picture: {shown(error)}") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB without alpha: transparent places become white, 16-bit grey is scaled to 8."""
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        grey = np.asarray(picture, np.float64)
        scale = 257.0 if grey.max(initial=0.0) > 255 else 1.0
        picture = Image.fromarray(np.round(np.clip(grey / scale, 0, 255)).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def axes(height: int, width: int, spec: Preprocessing) -> tuple[Axis, Axis]:
    """Rows and columns of a picture: how many there are, how many after the resize, and which the crop keeps.

    `squash` ignores the aspect; `shortest` scales the shorter side to `resize_size` and rounds the longer one down, as torchvision
    does. The middle is kept: as transformers cut it; torchvision rounds up. `patches` keeps all of it."""
    side = spec.resize_size
    if spec.patch_size is not None and spec.max_patches is not None:
        sides = fitted(height, width, spec.patch_size, spec.max_patches)
        rows, columns = (Axis(*pair, 0, pair[1]) for pair in zip((height, width), sides, strict=True))
        return rows, columns
    if spec.resize == "squash":
        wanted = side, side
    else:
        wanted = (int(side * height / width), side) if width <= height else (side, int(side * width / height))
    rows, columns = (
        Axis(stored, extent, (extent - spec.image_size) // 2, min(extent, spec.image_size))
        for stored, extent in zip((height, width), wanted, strict=True)
    )
    return rows, columns


def resize_and_crop(picture: Image.Image, spec: Preprocessing) -> Float[np.ndarray, "Y X 3"]:
    """Grey levels 0..255 of what the crop keeps of the resized picture."""
    rows, columns = axes(picture.height, picture.width, spec)
    if spec.filter == "bilinear_tf":
        return np.asarray(bilinear_without_antialias(np.asarray(picture), rows, columns))
    if _pixels(rows, columns) > MOST_RESIZED:
        return resize_part(np.asarray(picture), rows, columns, spec.filter).astype(np.float32)
    return np.asarray(_by_pillow(picture, rows, columns, FILTERS[spec.filter]), np.float32)


def _pixels(rows: Axis, columns: Axis) -> int:
    """Pixels after the first of Pillow's two steps, whichever that is, or at the end."""
    return max(columns.wanted * max(rows.stored, rows.wanted), columns.stored * rows.wanted)


def _by_pillow(picture: Image.Image, rows: Axis, columns: Axis, filter: Image.Resampling) -> Image.Image:
    resized = picture.resize((columns.wanted, rows.wanted), filter)
    return resized.crop((columns.first, rows.first, columns.first + columns.kept, rows.first + rows.kept))


def bilinear_without_antialias(
    pixels: UInt8[Array | np.ndarray, "Y X 3"], rows: Axis, columns: Axis
) -> Float[Array | np.ndarray, "V U 3"]:
    """TensorFlow's `tf.image.resize(method="bilinear", antialias=False)`: half-pixel centres, four taps."""

    def taps(axis: Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = np.arange(axis.first, axis.first + axis.kept)
        centre = np.clip((place + 0.5) * axis.stored / axis.wanted - 0.5, 0, axis.stored - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, axis.stored - 1), (centre - low).astype(np.float32)

    (above, below, down), (left, right, across) = taps(rows), taps(columns)
    down, across = down[:, None, None], across[None, :, None]

    def column(chosen: np.ndarray) -> Float[Array | np.ndarray, "V U 3"]:
        upper, lower = (pixels[np.ix_(lines, chosen)].astype(np.float32) for lines in (above, below))
        return upper * (1 - down) + lower * down

    return column(left) * (1 - across) + column(right) * across


def normalised(levels: Float[np.ndarray, "Y X 3"], spec: Preprocessing) -> Float[np.ndarray, "Y X 3"]:
    """Grey levels 0..255 as the tower takes them. Row by row: NumPy would spend most of its time on a last axis of three."""
    rows = levels.reshape(len(levels), -1) / np.float32(255.0)
    rows -= np.tile(np.asarray(spec.mean, np.float32), levels.shape[1])
    rows /= np.tile(np.asarray(spec.std, np.float32), levels.shape[1])
    return rows.reshape(levels.shape)


def preprocess(source: Any, spec: Preprocessing) -> Float[np.ndarray, "Y X 3"]:
    """A picture (PIL image, uint8 array, path or bytes) as float32 `[S, S, 3]`, normalised as the tower was trained, or the sheet of
    its patches."""
    pixels = normalised(resize_and_crop(open_picture(source), spec), spec)
    if spec.patch_size is None or spec.max_patches is None:
        return pixels
    return sheet_of(pixels, spec.patch_size, spec.max_patches)


def preprocess_map(classes: UInt8[np.ndarray, "Y X"], spec: Preprocessing) -> UInt8[np.ndarray, "S S"]:
    """A map of classes where `preprocess` puts its picture: the nearest pixel's class, cropped alike."""
    picture = Image.fromarray(classes)
    rows, columns = axes(picture.height, picture.width, spec)
    if _pixels(rows, columns) > MOST_RESIZED:
        return classes[np.ix_(rows.nearest(), columns.nearest())]
    return np.asarray(_by_pillow(picture, rows, columns, Image.Resampling.NEAREST))
