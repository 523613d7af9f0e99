"""Figures of patches where pictures have any shape: over the tokens that are there, and by place in a grid that all pictures share.

Each function gives what an ordinary encoder's figures always were where pictures are squares.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import BlockTrace


def tokens_of(trace: BlockTrace, spec: ImageSpec) -> Bool[Array, "B N"] | None:
    """Which rows of padded pictures are tokens (and not deleted); None where all rows are."""
    return trace.present if spec.blocks.padded else None


def median_patch(norms: Float[Array, "B N"], trace: BlockTrace, spec: ImageSpec) -> Float[Array, "B 1"]:
    """The median over each picture's patches."""
    there = tokens_of(trace, spec)
    if there is None:
        return jnp.median(norms[:, spec.num_protected :], axis=1, keepdims=True)
    return jnp.nanmedian(jnp.where(there, norms, jnp.nan), axis=1, keepdims=True)


def middle_patch(norms: Float[Array, "B M"], there: Bool[Array, "B M"] | None) -> Int[Array, "B"]:
    """The number of the patch of median norm; of an even number, the upper of the two."""
    if there is None:
        return jnp.argsort(norms, axis=1)[:, norms.shape[1] // 2]
    absent = jnp.sum(~there, axis=1, keepdims=True)  # they rank first
    order = jnp.argsort(jnp.where(there, norms, -1.0), axis=1)
    return jnp.take_along_axis(order, absent + (norms.shape[1] - absent) // 2, axis=1)[:, 0]


def placed(
    values: Shaped[np.ndarray, "*X b N"], cells: Int[np.ndarray, "b N"] | None, count: int
) -> Shaped[np.ndarray, "*X b M"]:
    """The largest value in each of `count` cells of a grid that is laid over pictures of any shape (`sheets.cells_of`); without cells
    every token has its own."""
    if cells is None:
        return values
    values = np.moveaxis(values, -1, 0)
    found = np.zeros((count, *values.shape[1:]), values.dtype)
    for number, own in enumerate(cells):
        np.maximum.at(found[..., number], own[own >= 0], values[own >= 0, ..., number])
    return np.moveaxis(found, 0, -1)
