"""Pictures of any shape (NaFlex) as sheets: arrays of one shape, with a line for each patch.

A line holds the pixels of a patch, row by row, and behind them one more "pixel" that places it: 1 where there is a patch, and 1 where
it begins a row of patches. So a picture brings its grid and its mask along, wherever it is kept or sent, in every dtype; lines
of zeros are padding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

SCALES, PRECISION = (1e-6, 100.0), 1e-5
"""Where the scale of a picture is searched, and how far: transformers' numbers."""


class Grids(NamedTuple):
    """Where the lines of sheets lie: which are patches, their rows and columns, and how many rows and columns a picture has."""

    there: Bool[Array, "B N"]
    row: Int[Array, "B N"]
    column: Int[Array, "B N"]
    rows: Int[Array, "B 1"]
    columns: Int[Array, "B 1"]


def fitted(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Pixels to which a picture is resized: whole patches, at most `max_patches`, of nearly its aspect.

    As transformers and big_vision find them: by halving the range of scales, with sides rounded up to whole patches."""

    def side(pixels: int, scale: float) -> int:
        return max(patch_size, math.ceil(pixels * scale / patch_size) * patch_size)

    low, high = SCALES
    while high - low >= PRECISION:
        scale = (low + high) / 2
        if (side(height, scale) / patch_size) * (side(width, scale) / patch_size) <= max_patches:
            low = scale
        else:
            high = scale
    return side(height, low), side(width, low)


def sheet_of(pixels: Float[np.ndarray, "Y X 3"], patch_size: int, max_patches: int) -> Float[np.ndarray, "N C 3"]:
    """The sheet of a picture of whole patches."""
    rows, columns = (side // patch_size for side in pixels.shape[:2])
    patches = pixels.reshape(rows, patch_size, columns, patch_size, 3).swapaxes(1, 2)
    sheet = np.zeros((max_patches, patch_size**2 + 1, 3), np.float32)
    sheet[: rows * columns, :-1] = patches.reshape(rows * columns, patch_size**2, 3)
    sheet[: rows * columns, -1, 0] = 1
    sheet[: rows * columns : columns, -1, 1] = 1
    return sheet


def cells_of(sheets: Float[Array, "B N C 3"], side: int) -> Int[Array, "B N"]:
    """The cell of a grid of `side` x `side`, laid over the picture, in which each line's patch begins; -1: no patch."""
    grids = grids_of(sheets)
    cell = (grids.row * side // grids.rows) * side + grids.column * side // grids.columns
    return jnp.where(grids.there, cell, -1)


def grids_of(sheets: Float[Array, "B N C 3"]) -> Grids:
    """The grid of every picture. What has no patch at all (it fills up a batch) gets one, as softmax needs something to see."""
    place = sheets[:, :, -1]
    number = jnp.arange(sheets.shape[1], dtype=jnp.int32)[None]
    there = (place[..., 0] > 0) | (number == 0)
    row = jnp.maximum(jnp.cumsum(place[..., 1] > 0, axis=1, dtype=jnp.int32) - 1, 0)
    rows = row[:, -1:] + 1
    columns = jnp.sum(there, axis=1, keepdims=True, dtype=jnp.int32) // rows
    return Grids(there, row, number - row * columns, rows, columns)
