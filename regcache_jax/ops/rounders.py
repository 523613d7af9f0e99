"""Who rounds: plain `lax` (the default), or AQT, to the same integers, scales and gradients.

The environment variable REGCACHE_ROUNDER, read when a program is traced, names one. AQT, which names Qwix its successor and ends, is
touched here alone and need not be installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int8

from regcache_jax.core.errors import UserError, shown

Rounded = tuple[Int8[Array, "..."], Float[Array, "..."], Callable[[Array], Array]]
"""Integers, their scale (rank of the inputs), and the straight-through gradient: from the cotangent of the dequantised values to that of
the inputs. A value beyond a given range gets none; a measured range ends nowhere, as its largest value lies within rounding of the end."""

LAST_PLACE = 1.5 * 2.0**23
"""Added to a small float32, it leaves the nearest integer (of two the even one) in the last bits: beyond 2**23 there are no fractions."""


def reciprocal(scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """What `by_lax` multiplies by: 1 for a scale so small that it has no reciprocal."""
    inverse = jnp.reciprocal(scale)
    return jnp.where(jnp.isinf(inverse), 1.0, inverse)


def by_lax(
    inputs: Float[Array, "..."],
    largest: int,
    axes: tuple[int, ...],
    scale: Float[Array, "..."] | None,
    inverse: Float[Array, "..."] | None = None,
) -> Rounded:
    """Times the reciprocal of the scale (`inverse`, where that was worked out before), cut at `largest`, to the nearest (half to even)."""
    measured = scale is None
    if scale is None:
        peak = jnp.max(jnp.abs(inputs), axis=axes, keepdims=True)
        scale = jnp.where(peak == 0, 1.0, peak) / largest
    steps = inputs * (reciprocal(scale) if inverse is None else inverse)
    return (
        _nearest(jnp.clip(steps, -largest, largest)),
        scale,
        Partial(_all if measured else _inside, None if measured else jnp.abs(steps) <= largest),
    )


def _nearest(steps: Float[Array, "..."]) -> Int8[Array, "..."]:
    """The integer that one addition leaves, read from the bits, as a compiler may fold a subtraction away (XLA's for CPUs does). On a TPU
    this costs less than `round`."""
    bits = jax.lax.bitcast_convert_type(steps + LAST_PLACE, jnp.int32)
    return (bits - jax.lax.bitcast_convert_type(jnp.float32(LAST_PLACE), jnp.int32)).astype(jnp.int8)


def _all(_: None, cotangent: Array) -> Array:
    return cotangent


def _inside(inside: Array, cotangent: Array) -> Array:
    return jnp.where(inside, cotangent, 0)


def by_aqt(
    inputs: Float[Array, "..."],
    largest: int,
    axes: tuple[int, ...],
    scale: Float[Array, "..."] | None,
    inverse: Float[Array, "..."] | None = None,
) -> Rounded:
    """AQT's quantiser, symmetric, its largest integer in the middle of the last bucket. It takes the reciprocal of a scale itself."""
    try:
        from aqt.jax.v2 import aqt_quantizer, aqt_tensor, calibration, utils
        from aqt.jax.v2.numerics import int_numerics
    except ModuleNotFoundError:
        raise UserError("REGCACHE_ROUNDER=aqt needs the package aqtp; install it, or leave the variable out") from None
    quantizer = aqt_quantizer.Quantizer(
        numerics=int_numerics.IntSymmetric(
            bits=largest.bit_length() + 1,
            preserve_zero=True,
            preserve_max_val=True,
            clip=True,
            clip_gradient=scale is not None,
            round=True,
            noise_fn=None,
            dtype=jnp.int8,
        ),
        calib_shared_axes=None,
        scale_stop_grad=True,
        scale_dtype=jnp.float32,
        calibration=calibration.AbsMaxCalibration,
        context=utils.Context(key=None, train_step=None),
    )
    quantizer.init_calibration()
    if scale is None:
        incomplete = quantizer.calibrate(inputs, calibration_axes=axes)
    else:
        incomplete = aqt_tensor.QTensor(qvalue=None, scale=[scale], scale_t=None, bias=[], dequant_dtype=jnp.float32)
    complete, gradient = quantizer.calculate_qvalue(inputs, incomplete)
    return complete.qvalue, complete.scale[0], Partial(_from_aqt, gradient)


def _from_aqt(gradient: Callable[[Array], tuple[Array, None]], cotangent: Array) -> Array:
    with jax.numpy_dtype_promotion("standard"):  # AQT multiplies the gradient by a bool mask
        return gradient(cotangent)[0]


ROUNDERS = {"lax": by_lax, "aqt": by_aqt}
SETTING = "REGCACHE_ROUNDER"


def rounder() -> Callable[..., Rounded]:
    """The one that the environment names. Raises UserError for a name that is none."""
    name = os.environ.get(SETTING) or "lax"
    if name not in ROUNDERS:
        raise UserError(f"{SETTING} must be one of {', '.join(ROUNDERS)}, got {shown(name, 60)}")
    return ROUNDERS[name]
