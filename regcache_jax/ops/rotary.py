"""Rotary positions: pairs of numbers in every query and key, turned by angles that grow with the patch's place (2104.09864).

DINOv3 (2508.10104) turns patches by their row and column, in two halves of a head's pairs; what has no place is not turned.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.spec import Rotary


class Turn(NamedTuple):
    """Cosine and sine of every token's angles, a pair of numbers each (J = K / 2)."""

    cos: Float[Array, "#B N J"]
    sin: Float[Array, "#B N J"]

    def back(self) -> Turn:
        """The same turn the other way."""
        return Turn(self.cos, -self.sin)


def turn_of(rotary: Rotary, place: Int[Array, "#B N"], grid: tuple[int, int], head_dim: int) -> Turn:
    """The turn of tokens by their place among the patches of `grid` (rows, columns), counted row by row from 0; a token whose place is
    negative has none, and an angle of 0."""
    pairs = head_dim // 4
    frequency = jnp.asarray(np.float64(rotary.base) ** (-np.arange(pairs) / pairs), jnp.float32)
    axes = [(place // grid[1], grid[0]), (place % grid[1], grid[1])]
    angles = [
        _coordinate(rotary, number, side)[..., None] * frequency
        for number, side in (axes if rotary.first_axis == "rows" else axes[::-1])
    ]
    angle = jnp.where(place[..., None] < 0, 0.0, jnp.concatenate(angles, axis=-1))
    return Turn(jnp.cos(angle), jnp.sin(angle))


def _coordinate(rotary: Rotary, number: Int[Array, "#B N"], side: int) -> Float[Array, "#B N"]:
    number32 = number.astype(jnp.float32)
    if rotary.coordinates == "integer":
        return (number32 if rotary.reference is None else number32 / side * rotary.reference) + rotary.offset
    return 2 * math.pi * (2 * ((number32 + 0.5) / side) - 1)


def rotate(heads: Float[Array, "*B N H K"], turn: Turn, rotary: Rotary) -> Float[Array, "*B N H K"]:
    """Queries or keys, turned; computed in float32."""
    heads32 = heads.astype(jnp.float32)
    cos, sin = turn.cos[..., None, :], turn.sin[..., None, :]
    if rotary.layout == "half":
        first, second = jnp.split(heads32, 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    else:
        first, second = heads32[..., 0::2], heads32[..., 1::2]
        turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(heads.shape)
    return turned.astype(heads.dtype)
