"""The exact GELU at the price of its tanh approximation, for where the result is rounded to integers.

XLA writes erf out as two long rational functions, which makes an integer MLP on a TPU three quarters dearer. The normal
distribution function is also (1 + tanh(x P(x^2))) / 2 with a smooth P, of which eight coefficients are enough: the result is
within 1e-6 of the exact one for every float32 input, a thousandth of the smallest step that int8 takes for inputs of a usual
size. So the integers are the same wherever the exact value is not within that of a rounding boundary (tests/test_gelu.py goes through
every bfloat16 input); erf itself, in float32, promises no more.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

BOUND = 5.0
"""Beyond this magnitude the distribution function is 0 or 1 to within 3e-7, and P is held constant."""

# Weighted minimax fit of atanh(erf(x / sqrt(2))) / x over 0..BOUND in powers of x^2 (benchmarks/gelu.py finds it).
COEFFICIENTS = (
    0.7978858351707458, 0.036330271512269974, -2.9924021873739548e-05, -5.637621143250726e-05,
    4.1696666812640615e-06, -1.5157058896875242e-07, 2.5973134754053717e-09, -1.3086680177021304e-11,
)  # fmt: skip


def gelu_for_integers(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function, within 1e-6 of it in float32."""
    x32 = x.astype(jnp.float32)
    square = jnp.minimum(jnp.square(x32), BOUND**2)
    slope = jnp.full_like(square, COEFFICIENTS[-1])
    for coefficient in COEFFICIENTS[-2::-1]:
        slope = slope * square + coefficient
    return (0.5 * x32 * (1.0 + jnp.tanh(x32 * slope))).astype(x.dtype)
