"""Position tables at another grid: one matrix a side, computed on the host, applied to rows and columns.

The published ways differ (shared facts in docs/encoders.md): Meta's DINOv2 asks for the scale factor (n + 0.1) / 37
(`bicubic_offset`), its models with registers use the output size with antialiasing, transformers the output size,
big_vision a linear zoom from corner to corner, Meta's Perception Encoder a linear one between centres (`bilinear_centres`).
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel with parameter `a`: -0.75 in PyTorch without antialiasing, -0.5 with it."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def resize_matrix(stored: int, wanted: int, interpolation: str) -> np.ndarray:
    """Weights `[wanted, stored]` that resample one side of a table (align_corners=False but for `bilinear`)."""
    out = np.arange(wanted, dtype=np.float64)
    source = np.arange(stored, dtype=np.float64)
    if interpolation == "bilinear":  # scipy.ndimage.zoom, order 1: the corners stay where they are
        centre = out * (stored - 1) / max(wanted - 1, 1)
        return np.maximum(0.0, 1.0 - np.abs(centre[:, None] - source)).astype(np.float32)
    if interpolation in ("bicubic_antialias", "bilinear_antialias"):
        ratio = stored / wanted
        distance = (source + 0.5 - (out[:, None] + 0.5) * ratio) / max(ratio, 1.0)
        linear = interpolation == "bilinear_antialias"
        weights = np.maximum(1.0 - np.abs(distance), 0.0) if linear else _cubic(distance, a=-0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    ratio = stored / (wanted + 0.1) if interpolation == "bicubic_offset" else stored / wanted
    centre = (out + 0.5) * ratio - 0.5
    if interpolation == "bilinear_centres":  # beyond the outermost centres their rows stay
        centre = np.clip(centre, 0, stored - 1)
        return np.maximum(0.0, 1.0 - np.abs(centre[:, None] - source)).astype(np.float32)
    low = np.floor(centre)
    weights = np.zeros((wanted, stored))
    for tap in range(-1, 3):  # beyond the border the last row is repeated
        index = np.clip(low + tap, 0, stored - 1).astype(int)
        np.add.at(weights, (out.astype(int), index), _cubic(centre - (low + tap), a=-0.75))
    return weights.astype(np.float32)


def resize_positions(
    table: Float[Array, "S D"], prefix: int, stored: int, wanted: int, interpolation: str
) -> Float[Array, "N D"]:
    """Resamples the patch rows of a table from a `stored` to a `wanted` grid; the first `prefix` rows stay as they are."""
    if stored == wanted:
        return table
    matrix = jnp.asarray(resize_matrix(stored, wanted, interpolation))
    grid = table[prefix:].astype(jnp.float32).reshape(stored, stored, -1)
    resized = jnp.einsum("ys,xt,std->yxd", matrix, matrix, grid, precision="highest")
    return jnp.concatenate([table[:prefix], resized.reshape(wanted * wanted, -1).astype(table.dtype)])
