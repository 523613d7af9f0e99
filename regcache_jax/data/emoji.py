"""The bundled pictures: drawings of 204 emoji concepts by three vendors, each rendered in four fixed ways.

Split `test` is Twemoji (816 pictures), which no training, calibration or search has seen; split `train` is Noto and Fluent
(1,632 pictures, in a fixed order that mixes concepts, so that a limit is a fair draw). Licences: demo/data/LICENSES.md.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

TEMPLATES = ("{c}", "an emoji of {c}", "a small picture of {c}", "a drawing of a {c}")
SPLITS = {"train": ("noto", "fluent"), "test": ("twemoji",)}
SIDE = 64


class Rendering(NamedTuple):
    """Where a drawing goes on its picture: background colour (0..1), size, left and top edge in pixels."""

    background: tuple[float, float, float]
    size: int
    left: int
    top: int


RENDERINGS = (
    Rendering((1.0, 1.0, 1.0), 64, 0, 0),
    Rendering((0.80, 0.88, 0.95), 52, 6, 6),
    Rendering((0.15, 0.17, 0.22), 54, 0, 9),
    Rendering((0.93, 0.86, 0.74), 58, 6, 2),
)


def _folder() -> Any:
    return resources.files("regcache_jax") / "demo" / "data" / "emoji"


@functools.cache
def class_names() -> tuple[str, ...]:
    """The names of the 204 concepts."""
    return tuple(json.loads((_folder() / "concepts.json").read_text())["names"])


@functools.cache
def pictures(split: str) -> list[tuple[str, int, int]]:
    """All pictures of a split as (vendor, concept, rendering), `train` in its fixed mixed order."""
    listed = [
        (vendor, concept, rendering)
        for vendor in SPLITS[split]
        for concept in range(len(class_names()))
        for rendering in range(len(RENDERINGS))
    ]
    if split == "test":
        return listed
    return [listed[index] for index in np.random.default_rng(0).permutation(len(listed))]


@functools.lru_cache(maxsize=1024)
def _drawing(vendor: str, concept: int) -> Image.Image:
    with (_folder() / vendor / f"{concept:03d}.png").open("rb") as file:
        return Image.open(file).convert("RGBA")


def _place(vendor: str, concept: int, rendering: int) -> Float[np.ndarray, "64 64 4"]:
    """A drawing, resized, at its place on a clear canvas: RGBA in 0..1."""
    how = RENDERINGS[rendering]
    drawing = _drawing(vendor, concept).resize((how.size, how.size), Image.Resampling.BILINEAR)
    canvas = np.zeros((SIDE, SIDE, 4), np.float32)
    canvas[how.top : how.top + how.size, how.left : how.left + how.size] = np.asarray(drawing, np.float32) / 255
    return canvas


def render(vendor: str, concept: int, rendering: int) -> UInt8[np.ndarray, "64 64 3"]:
    """One picture: the drawing, resized, on its background."""
    canvas = _place(vendor, concept, rendering)
    alpha = canvas[..., 3:]
    blended = canvas[..., :3] * alpha + np.asarray(RENDERINGS[rendering].background, np.float32) * (1 - alpha)
    return np.round(blended * 255).astype(np.uint8)


def foreground(vendor: str, concept: int, rendering: int) -> UInt8[np.ndarray, "64 64"]:
    """Where the drawing covers its background: 1, else 0."""
    return (_place(vendor, concept, rendering)[..., 3] > 0.5).astype(np.uint8)
