"""Preprocessing as part of a program: uint8 pictures of one stated size in, resized, cropped and normalised as `preprocess` does it.

Pillow's resize is a sum of whole numbers: grey levels times weights with 22 bits after the point (`resampling`). Here a weight is three
digits of base 256, so that three products multiply whole numbers which bfloat16 and TF32 hold exactly, and whose sums float32 holds. So the
grey levels are the host's on every platform, at the speed of its matrix unit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, UInt8

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Preprocessing
from regcache_jax.encoders.preprocess import axes, bilinear_without_antialias, preprocess
from regcache_jax.encoders.resampling import BITS, Axis

TOLERANCE = 1e-5
"""How far a normalised value may be from the host's: float32's last bits, where a grey level would be 0.004 and more."""

Preprocess = Callable[[UInt8[Array, "B Y X 3"]], Float[Array, "B S S 3"]]


def preprocess_inside(spec: Preprocessing, height: int, width: int) -> Preprocess:
    """`preprocess` for pictures of one size, to be traced into a program.

    Tried here on a picture of noise beside the host's. Raises UserError for a size at which it is not the same within TOLERANCE."""
    if spec.resize == "patches":
        raise UserError("pictures of any shape become sheets of patches before a program; leave --pictures out")
    noise = np.random.default_rng(0).integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)
    wanted = preprocess(noise, spec)
    for columns_first in (True, False):  # Pillow's choice, by sizes and its version
        inside = _inside(spec, height, width, columns_first)
        found = np.asarray(jax.jit(inside)(noise[None]))[0]
        if found.shape == (spec.image_size, spec.image_size, 3) and np.abs(found - wanted).max() <= TOLERANCE:
            return inside
    raise UserError(
        f"pictures of {height}x{width} cannot be preprocessed inside a program to within {TOLERANCE:g} of the host's; "
        "take another size, or leave --pictures out and preprocess them before"
    )


def _inside(spec: Preprocessing, height: int, width: int, columns_first: bool) -> Preprocess:
    rows, columns = axes(height, width, spec)
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    resize: Callable[[Array], Array | np.ndarray]
    if spec.filter == "bilinear_tf":
        resize = jax.vmap(functools.partial(bilinear_without_antialias, rows=rows, columns=columns))
    else:
        steps = [(2, _digits(columns, spec.filter)), (1, _digits(rows, spec.filter))]
        resize = functools.partial(_by_products, steps=steps if columns_first else steps[::-1])

    def normalized(pictures: UInt8[Array, "B Y X 3"]) -> Float[Array, "B S S 3"]:
        return ((jnp.asarray(resize(pictures)) / np.float32(255.0)) - mean) / std

    return normalized


def _by_products(
    pictures: UInt8[Array, "B Y X 3"], steps: list[tuple[int, Int8[np.ndarray, "3 ..."]]]
) -> Float[Array, "B S S 3"]:
    """Grey levels of the kept part, resized along one axis after the other and rounded each time, as Pillow does."""
    levels = pictures.astype(jnp.float32)
    for axis, digits in steps:
        small = jax.lax.optimization_barrier(jnp.asarray(digits))  # or the compiler would keep them as float32
        products = jnp.tensordot(small.astype(jnp.float32), levels, ((2,), (axis,)))
        low, middle, high = products.astype(jnp.int32)
        sums = (high << 16) + (middle << 8) + low + (1 << (BITS - 1))
        levels = jnp.moveaxis(jnp.clip(sums >> BITS, 0, 255).astype(jnp.float32), 0, axis)
    return levels


def _digits(axis: Axis, filter: str) -> Int8[np.ndarray, "3 V Y"]:
    """The weights of every stored pixel for every kept one, as three digits from -128 to 127, the lowest first."""
    weights = np.zeros((axis.kept, axis.stored), np.int64)
    for place in range(axis.kept):
        low, taps = axis.taps(place, filter)
        weights[place, low : low + len(taps)] = taps
    digits = []
    for _ in range(3):
        digits.append((weights + 128) % 256 - 128)
        weights = (weights - digits[-1]) // 256
    if np.abs(digits).sum(axis=-1).max() * 255 >= 1 << 24:
        raise UserError(
            f"{axis.stored} pixels cannot be resized to {axis.wanted} inside a program: the sums would not be exact; "
            "make the pictures smaller before"
        )
    return np.stack(digits).astype(np.int8)
