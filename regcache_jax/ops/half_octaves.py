"""Softmax rounded to powers of the square root of two, and its product with values as two integer products."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from regcache_jax.ops.integers import quantize

LOG_LEVELS = 16
"""Half octaves that int8 holds: 2**0 to 2**-7.5."""


def half_octaves(terms: Float[Array, "..."], bits: int) -> tuple[Int8[Array, "..."], Int8[Array, "..."]]:
    """Terms between 0 and 1 as the nearest 2**(-k / 2): even and odd k apart, as integers -2**(7 - k // 2), zero where a term is
    of the other kind or beyond the last of 2**bits levels (`LOG_LEVELS` at most).

    The even ones are in units of -2**-7, the odd ones of -2**-7.5. They are negative since int8 holds -128 and not 128."""
    steps = jnp.round(-2.0 * jnp.log2(jnp.maximum(terms.astype(jnp.float32), 1e-30)))
    level = jnp.clip(steps, 0, LOG_LEVELS).astype(jnp.int32)
    power = jnp.where(level < min(2**bits, LOG_LEVELS), jnp.right_shift(128, level // 2), 0)
    is_even = level % 2 == 0
    halves = jnp.where(is_even, -power, 0), jnp.where(is_even, 0, -power)
    return halves[0].astype(jnp.int8), halves[1].astype(jnp.int8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def logarithmic_matmul(
    terms: Float[Array, "B H T S"],
    right: Float[Array, "B H S K"],
    right_scale: Float[Array, "1 1 1 1"] | None,
    bits: int,
    per_row: bool,
) -> Float[Array, "B H T K"]:
    """Multiplies terms between 0 and 1, rounded to half octaves, with activations: two products int8 x int8 -> int32 (even and odd
    half octaves), then scales. Otherwise as `quantized_matmul`."""
    return _logarithmic_matmul_forward(terms, right, right_scale, bits, per_row)[0]


def _logarithmic_matmul_forward(
    terms: Float[Array, "B H T S"],
    right: Float[Array, "B H S K"],
    right_scale: Float[Array, "1 1 1 1"] | None,
    bits: int,
    per_row: bool,
) -> tuple[Float[Array, "B H T K"], Any]:
    even, odd = half_octaves(terms, bits)
    columns, gradient = quantize(right, bits, (2,) if per_row else (0, 1, 2, 3), right_scale)
    axes = (((3,), (2,)), ((0, 1), (0, 1)))
    sums = [
        jax.lax.dot_general(each, columns.values, axes, preferred_element_type=jnp.int32).astype(jnp.float32)
        for each in (even, odd)
    ]
    product = (sums[0] + sums[1] * 2**-0.5) * (-(2.0**-7) * columns.scale)
    return product, (even, odd, gradient, columns, jnp.zeros((), terms.dtype), jnp.zeros((), right.dtype))


def _logarithmic_matmul_backward(
    bits: int, per_row: bool, residuals: Any, cotangent: Float[Array, "B H T K"]
) -> tuple[Array, Array, None]:
    even, odd, gradient, columns, like_terms, like_right = residuals
    rounded = (even.astype(jnp.float32) + odd.astype(jnp.float32) * 2**-0.5) * -(2.0**-7)
    to_terms = jnp.einsum("bhtk,bhsk->bhts", cotangent, columns.dequantize())
    to_right = jnp.einsum("bhtk,bhts->bhsk", cotangent, rounded)
    return to_terms.astype(like_terms.dtype), gradient(to_right).astype(like_right.dtype), None


logarithmic_matmul.defvjp(_logarithmic_matmul_forward, _logarithmic_matmul_backward)
