"""From a picture to the array a tower takes: PIL-exact resize and crop, as each family was published.

Pictures come as files people have: greyscale, palette, CMYK, 16-bit, with alpha (composited on white), rotated by EXIF.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Preprocessing

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
LARGEST_PICTURE = 1 << 28
"""Pixels beyond which a file is taken for a decompression bomb."""


def open_picture(source: Any, name: str | None = None) -> Image.Image:
    """Reads a PIL image, path or bytes into RGB. Raises UserError that names what cannot be read.

    `name` stands in the message for a source without one."""
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source)
    given = "picture" if isinstance(source, bytes | Image.Image) else os.fspath(source)
    name = name or given
    try:
        if not isinstance(source, Image.Image):
            data = source if isinstance(source, bytes) else epath.Path(source).read_bytes()
            source = Image.open(io.BytesIO(data))
            if source.width * source.height > LARGEST_PICTURE:
                raise UserError(f"{name} claims {source.width} x {source.height} pixels; that is no picture")
            source.load()
        return to_rgb(ImageOps.exif_transpose(source))
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{name} cannot be read as a picture: it is cut off, or in no format that is known") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} cannot be read as a picture: {error}") from None


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
    return picture.convert("RGB")


def resized(picture: Image.Image, spec: Preprocessing) -> tuple[int, int]:
    """Width and height after the resize. `squash` ignores the aspect; `shortest` scales the shorter side to `resize_size` and
    rounds the longer one down, as torchvision does."""
    side = spec.resize_size
    if spec.resize == "squash":
        return side, side
    width, height = picture.size
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def crop(pixels: Shaped[np.ndarray, "Y X *C"], spec: Preprocessing) -> Shaped[np.ndarray, "S S *C"]:
    """The middle of what was resized."""
    top, left = (
        (extent - spec.image_size) // 2 for extent in pixels.shape[:2]
    )  # as transformers; torchvision rounds up
    return pixels[top : top + spec.image_size, left : left + spec.image_size]


def resize(picture: Image.Image, spec: Preprocessing) -> Float[np.ndarray, "Y X 3"]:
    """Grey levels 0..255 after the resize, before the crop."""
    size = resized(picture, spec)
    if spec.filter == "bilinear_tf":
        return _bilinear_without_antialias(np.asarray(picture, np.float32), size)
    return np.asarray(picture.resize(size, FILTERS[spec.filter]), np.float32)


def _bilinear_without_antialias(array: Float[np.ndarray, "Y X 3"], size: tuple[int, int]) -> Float[np.ndarray, "V U 3"]:
    """TensorFlow's `tf.image.resize(method="bilinear", antialias=False)`: half-pixel centres, four taps."""

    def taps(stored: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = np.clip((np.arange(wanted) + 0.5) * stored / wanted - 0.5, 0, stored - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, stored - 1), (centre - low).astype(np.float32)

    low, high, share = taps(array.shape[0], size[1])
    rows = array[low] * (1 - share)[:, None, None] + array[high] * share[:, None, None]
    low, high, share = taps(array.shape[1], size[0])
    return rows[:, low] * (1 - share)[None, :, None] + rows[:, high] * share[None, :, None]


def preprocess(source: Any, spec: Preprocessing) -> Float[np.ndarray, "S S 3"]:
    """A picture (PIL image, uint8 array, path or bytes) as float32 `[S, S, 3]`, normalised as the tower was trained."""
    cropped = crop(resize(open_picture(source), spec), spec)
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    return ((cropped / np.float32(255.0)) - mean) / std


def preprocess_map(classes: UInt8[np.ndarray, "Y X"], spec: Preprocessing) -> UInt8[np.ndarray, "S S"]:
    """A map of classes where `preprocess` puts its picture: the nearest pixel's class, cropped alike."""
    picture = Image.fromarray(classes)
    return crop(np.asarray(picture.resize(resized(picture, spec), Image.Resampling.NEAREST)), spec)
