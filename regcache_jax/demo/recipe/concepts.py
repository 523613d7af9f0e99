"""Which concepts to keep: those that vendors draw alike, and then those that a half-trained encoder does not confuse."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from regcache_jax.demo.recipe.augment import over
from regcache_jax.demo.recipe.drawings import DrawingSet

ALIKE_VENDORS = ("noto", "blob", "fluent", "emojione")
THUMBNAILS = ((12, 1.0), (4, 3.0))  # side in pixels, weight: the coarse one stands for layout and colour


def thumbnails(drawings: DrawingSet) -> Float[np.ndarray, "C V T"]:
    """Centred unit vectors of small thumbnails on white, for the vendors whose agreement counts."""
    columns = [drawings.vendors.index(name) for name in ALIKE_VENDORS if name in drawings.vendors]

    def vector(rgba: np.ndarray) -> np.ndarray:
        flat = Image.fromarray(
            np.round(over(rgba.astype(np.float32) / 255, np.ones(3, np.float32)) * 255).astype(np.uint8)
        )
        sizes = [np.asarray(flat.resize((side, side), Image.Resampling.BOX), np.float32) * w for side, w in THUMBNAILS]
        return np.concatenate([size.ravel() for size in sizes])

    vectors = np.stack([[vector(row[column]) for column in columns] for row in drawings.rgba])
    vectors = vectors - vectors.mean(axis=(0, 1))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def most_alike(drawings: DrawingSet, count: int) -> Int[np.ndarray, "n"]:
    """The `count` concepts whose drawings resemble each other most: mean similarity of two vendors, less half of the
    similarity to the nearest other concept."""
    vectors = thumbnails(drawings)
    similarity = np.einsum("avd,bwd->abvw", vectors, vectors)
    num_vendors = vectors.shape[1]
    same = np.einsum("aavw->avw", similarity)
    own = (same.sum((1, 2)) - np.einsum("avv->a", same)) / (num_vendors * (num_vendors - 1))
    others = similarity.mean((2, 3))
    np.fill_diagonal(others, -np.inf)
    score = own - 0.5 * others.max(axis=1)
    return np.sort(np.argsort(-score, kind="stable")[:count])


def least_confused(confusion: Float[np.ndarray, "C C"], count: int) -> Int[np.ndarray, "n"]:
    """Drops, one after the other, the concept with the most confusion until `count` are left.

    `confusion[i, j]` is how much probability drawings of concept i give to name j. After each loss the rows of those
    that are left are scaled to 1 again; a concept's confusion counts both ways."""
    kept = np.arange(len(confusion))
    while len(kept) > count:
        rows = confusion[np.ix_(kept, kept)]
        rows = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-9)
        np.fill_diagonal(rows, 0.0)
        kept = np.delete(kept, np.argmax(rows.sum(axis=0) + rows.sum(axis=1)))
    return kept
