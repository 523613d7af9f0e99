"""The exact GELU at little more than the price of its tanh approximation, for where the result is rounded to integers.

XLA writes erf out as two long rational functions, which makes an integer MLP on a TPU three quarters dearer. The normal
distribution function is also (1 + tanh(x P(x^2))) / 2 with a smooth P, of which seven coefficients are enough: the result
is within 1e-6 of the exact one, a thousandth of the smallest step that int8 takes for inputs of a usual size. So the integers are
the same wherever the exact value is not within that of a rounding boundary (tests/test_gelu.py goes through every bfloat16
input); erf itself, in float32, promises no more. The last coefficient is positive, so that tanh reaches 1 for large inputs
without a bound on them.

Every GELU is x times a logistic function, for which XLA writes a GPU three fifths of the instructions that it does for tanh
(docs/performance_tried.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.spec import Activation

# Weighted minimax fit of atanh(erf(x / sqrt(2))) / x over 0..5 in powers of x^2 (benchmarks/gelu.py finds it).
COEFFICIENTS = (
    0.7978843450546265, 0.03633399307727814, -3.290766107966192e-05, -5.531147326109931e-05,
    3.979733264714014e-06, -1.3416618571682193e-07, 1.8233469178952078e-09,
)  # fmt: skip


@jax.custom_jvp
def gelu_for_integers(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function, within 1e-6 of it in float32. Its derivative is that of the exact one."""
    x32 = x.astype(jnp.float32)
    return (x32 * _distribution(x32)).astype(x.dtype)


@gelu_for_integers.defjvp
def _derivative(
    primals: tuple[Float[Array, "..."]], tangents: tuple[Float[Array, "..."]]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    (x,), (tangent,) = primals, tangents
    x32 = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(x32)) * (1 / math.sqrt(2 * math.pi))
    return gelu_for_integers(x), ((_distribution(x32) + x32 * density) * tangent).astype(x.dtype)


def _distribution(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The share of a normal distribution below x."""
    return 0.5 * (1.0 + jnp.tanh(x * _slope(jnp.square(x))))


def _slope(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """P, of the square of an input."""
    slope = jnp.full_like(square, COEFFICIENTS[-1])
    for coefficient in COEFFICIENTS[-2::-1]:
        slope = slope * square + coefficient
    return slope


SLOPES: dict[Activation, Callable[[Float[Array, "..."]], Float[Array, "..."] | float]] = {
    "gelu": lambda square: 2.0 * _slope(square),
    "gelu_tanh": lambda square: math.sqrt(8 / math.pi) * (1.0 + 0.044715 * square),
    "quick_gelu": lambda _: 1.702,
    "silu": lambda _: 1.0,
}
"""By what an input is multiplied, given its square, before the logistic function."""


def by_logistic(x: Float[Array, "..."], activation: Activation) -> Float[Array, "..."]:
    """An activation of `SLOPES` as x times the logistic function of x times its slope, in float32."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.nn.sigmoid(x32 * SLOPES[activation](jnp.square(x32)))).astype(x.dtype)
