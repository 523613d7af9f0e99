"""Augmentation: one random view of one drawing. A table of steps, each with how often it is taken.

A drawing is float32 `[64, 64, 4]` in 0..1 with straight alpha; `other` is a drawing of the same concept by another vendor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageFilter

from regcache_jax.demo.recipe.drawings import SIDE, DrawingSet

Drawing = np.ndarray  # float32 [64, 64, 4]
Rng = np.random.Generator

TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # brightness, two of colour
PREFETCHED = 4  # batches made ahead of the training step


def over(drawing: Float[np.ndarray, "Y X 4"], background: Float[np.ndarray, "*S 3"]) -> Float[np.ndarray, "Y X 3"]:
    """The drawing on a background, which is a colour or a picture."""
    alpha = drawing[..., 3:]
    return drawing[..., :3] * alpha + background * (1 - alpha)


def _image(drawing: Drawing) -> Image.Image:
    return Image.fromarray(np.round(drawing * 255).astype(np.uint8))


def _drawing(image: Image.Image) -> Drawing:
    return np.asarray(image, np.float32) / 255


def mix_vendors(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """Two vendors of one concept, blended, or joined along a cut."""
    if rng.random() < 0.5:
        share = np.float32(rng.uniform(0.3, 0.7))
        return drawing * share + other * (1 - share)
    cut = rng.integers(22, 42)
    first = np.arange(SIDE) < cut
    mask = first[:, None] if rng.random() < 0.5 else first[None, :]
    return np.where(mask[..., None], drawing, other)


def warp(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """Size, rotation, aspect, shear, mirror, place, and a jitter of the four corners."""
    size, angle, aspect = rng.uniform(0.65, 1.08), rng.normal(0, 0.14), np.exp(rng.normal(0, 0.08))
    mirror = -1.0 if rng.random() < 0.3 else 1.0
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine * mirror, -sine + rng.normal(0, 0.1)], [sine * mirror, cosine]])
    inverse = turn * np.array([[aspect], [1 / aspect]]) / size
    room = max(0.0, (1 - size) * SIDE / 2) + 2.5
    corners = np.array([[0, 0], [0, SIDE], [SIDE, SIDE], [SIDE, 0]]) - SIDE / 2 - rng.uniform(-room, room, 2)
    quad = corners @ inverse.T + SIDE / 2 + rng.normal(0, 3.0, (4, 2))
    moved = _image(drawing).transform(
        (SIDE, SIDE), Image.Transform.QUAD, tuple(quad.ravel()), Image.Resampling.BILINEAR
    )
    return _drawing(moved)


def blur(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """A Gaussian blur."""
    return _drawing(_image(drawing).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3))))


def flatten_detail(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """A median filter, which leaves flat areas."""
    return _drawing(_image(drawing).filter(ImageFilter.MedianFilter(3 if rng.random() < 0.6 else 5)))


def _palette(drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of the colours, weighted by alpha."""
    weight = drawing[..., 3:] + 1e-6
    mean = (drawing[..., :3] * weight).sum((0, 1)) / weight.sum()
    return mean, np.sqrt((np.square(drawing[..., :3] - mean) * weight).sum((0, 1)) / weight.sum()) + 0.03


def transfer_palette(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """The other vendor's mean colour and spread."""
    (mean, spread), (other_mean, other_spread) = _palette(drawing), _palette(other)
    colours = (drawing[..., :3] - mean) * np.clip(other_spread / spread, 0.4, 2.0) + other_mean
    return _with_colours(drawing, colours)


def jitter_colours(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """Hue, saturation, a slight mixing of channels, contrast and brightness."""
    angle, saturation = rng.normal(0, 0.25), np.exp(rng.normal(0, 0.25))
    cosine, sine = np.cos(angle) * saturation, np.sin(angle) * saturation
    turn = np.linalg.inv(TO_YIQ) @ np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ TO_YIQ
    noise = rng.normal(0, 0.08, (3, 3))
    matrix = (np.eye(3) + noise - noise.mean(axis=1, keepdims=True)).T @ turn
    contrast, brightness = np.exp(rng.normal(0, 0.18)), rng.normal(0, 0.06)
    return _with_colours(drawing, (drawing[..., :3] @ matrix.T - 0.5) * contrast + 0.5 + brightness)


def change_gamma(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """Lighter or darker middle tones."""
    return _with_colours(drawing, drawing[..., :3] ** np.exp(rng.normal(0, 0.3)))


def posterise(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """Few levels a channel."""
    levels = rng.integers(3, 7)
    return _with_colours(drawing, np.round(drawing[..., :3] * levels) / levels)


def to_grey(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """No colour."""
    return _with_colours(drawing, np.repeat(drawing[..., :3].mean(axis=-1, keepdims=True), 3, axis=-1))


def outline(drawing: Drawing, other: Drawing, rng: Rng) -> Drawing:
    """A stroke around the drawing."""
    width = 3 if rng.random() < 0.6 else 5
    alpha = drawing[..., 3:]
    grown = _drawing(_image(drawing).getchannel("A").filter(ImageFilter.MaxFilter(width)))[..., None]
    colour = np.full(3, rng.choice([0.0, 0.1, 0.2, 1.0])) if rng.random() < 0.7 else rng.uniform(0, 1, 3)
    stroked = _with_colours(drawing, over(drawing, colour))
    return np.concatenate([stroked[..., :3], np.maximum(alpha, grown)], axis=-1)


def _with_colours(drawing: Drawing, colours: np.ndarray) -> Drawing:
    clipped = np.clip(colours, 0, 1).astype(np.float32)
    return np.concatenate([clipped, drawing[..., 3:]], axis=-1)


class Step(NamedTuple):
    """One step of augmentation and the share of views that take it."""

    share: float
    change: Callable[[Drawing, Drawing, Rng], Drawing]


STEPS = (
    Step(0.20, mix_vendors),
    Step(1.00, warp),
    Step(0.15, blur),
    Step(0.12, flatten_detail),
    Step(0.25, transfer_palette),
    Step(0.80, jitter_colours),
    Step(0.30, change_gamma),
    Step(0.15, posterise),
    Step(0.10, to_grey),
    Step(0.15, outline),
)


def background(rng: Rng) -> Float[np.ndarray, "64 64 3"]:
    """A random colour, or white, black or a grey; on a quarter of the views with a slant."""
    colour = rng.uniform(0, 1, 3) if rng.random() < 0.7 else np.full(3, rng.choice([1.0, 1.0, 0.95, 0.0, 0.5]))
    picture = np.broadcast_to(colour, (SIDE, SIDE, 3))
    if rng.random() < 0.25:
        y, x = np.meshgrid(*(np.linspace(-0.5, 0.5, SIDE),) * 2, indexing="ij")
        angle = rng.uniform(0, 2 * np.pi)
        slant = np.cos(angle) * y + np.sin(angle) * x
        picture = picture + slant[..., None] * rng.uniform(-0.3, 0.3, 3)
    return picture.astype(np.float32)


def erase(picture: Float[np.ndarray, "Y X 3"], rng: Rng) -> Float[np.ndarray, "Y X 3"]:
    """A rectangle of one colour."""
    (top, left), (height, width) = rng.integers(0, SIDE - 16, 2), rng.integers(6, 22, 2)
    erased = picture.copy()
    erased[top : top + height, left : left + width] = rng.uniform(0, 1, 3)
    return erased


def random_view(drawing: Drawing, other: Drawing, rng: Rng) -> Float[np.ndarray, "64 64 3"]:
    """One training picture, float32 in 0..1."""
    for step in STEPS:
        if rng.random() < step.share:
            drawing = step.change(drawing, other, rng)
    picture = over(drawing, background(rng))
    if rng.random() < 0.2:
        picture = erase(picture, rng)
    noisy = picture + rng.normal(0, rng.uniform(0, 0.02), picture.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)


class Batch(NamedTuple):
    """Training pictures in 0..1 and the numbers of their concepts."""

    images: Float[np.ndarray, "B 64 64 3"]
    labels: Int[np.ndarray, "B"]


def make_batch(drawings: DrawingSet, size: int, seed: int, step: int) -> Batch:
    """Batch number `step`: a function of its arguments alone, so that training can go on where it stopped."""
    rng = np.random.default_rng([seed, step])
    odds = drawings.trains * np.asarray(drawings.weights)
    odds = odds / odds.sum(axis=1, keepdims=True)
    labels = rng.integers(0, len(drawings.names), size)
    views = []
    for label in labels:
        first, second = rng.choice(odds.shape[1], 2, p=odds[label])
        pair = drawings.rgba[label, [first, second]].astype(np.float32) / 255
        views.append(random_view(pair[0], pair[1], rng))
    return Batch(np.stack(views), labels.astype(np.int32))


def batches(drawings: DrawingSet, size: int, seed: int, steps: range) -> Iterator[Batch]:
    """The batches of these steps, made in a thread while the device trains."""
    with ThreadPoolExecutor(1) as pool:
        made: list[Future[Batch]] = []
        for step in steps:
            made.append(pool.submit(make_batch, drawings, size, seed, step))
            if len(made) > PREFETCHED:
                yield made.pop(0).result()
        for future in made:
            yield future.result()
