"""The GELU in front of integers: close to the exact one for every input, and the same integers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regcache_jax.encoders.blocks import ACTIVATIONS
from regcache_jax.ops.gelu import SLOPES, by_logistic, gelu_for_integers


@pytest.fixture(scope="module")
def every_bfloat16() -> np.ndarray:
    patterns = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16).astype(np.float32)
    return patterns[np.isfinite(patterns)]


@pytest.fixture(scope="module")
def exact(every_bfloat16) -> np.ndarray:
    return np.array([0.5 * x * math.erfc(-x / math.sqrt(2)) for x in every_bfloat16.astype(np.float64)])


def test_every_bfloat16_input_gives_the_exact_value_to_one_in_a_million(every_bfloat16, exact):
    ours = np.asarray(jax.jit(gelu_for_integers)(every_bfloat16), np.float64)
    # 1e-6 where the polynomial works, float32's own relative rounding (2 units of 2**-23) for large inputs
    np.testing.assert_allclose(ours, exact, atol=1e-6, rtol=2.4e-7)


@pytest.mark.parametrize("activation", list(SLOPES))
def test_every_bfloat16_input_has_the_same_activation_by_a_logistic_function(every_bfloat16, activation):
    ours = np.asarray(jax.jit(by_logistic, static_argnums=1)(every_bfloat16, activation))
    wanted = np.asarray(jax.jit(ACTIVATIONS[activation])(every_bfloat16))
    # of the exact GELU the polynomial's 1e-6 and erf's; of the others that of float32
    np.testing.assert_allclose(ours, wanted, atol=2e-6, rtol=5e-7)


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("largest", [0.5, 1.7, 3.3, 10.0, 47.0, 300.0])
def test_every_bfloat16_input_gives_the_integer_of_the_exact_gelu(every_bfloat16, exact, bits, largest):
    """All 65,280 inputs of a bf16 program, against all 2**bits - 1 outputs, for steps from 0.004 to 43."""
    bound = 2 ** (bits - 1) - 1
    step = largest / bound
    values = np.asarray(gelu_for_integers(jnp.asarray(every_bfloat16)), np.float64)
    ours = np.clip(np.round(values / step), -bound, bound)
    wanted = np.clip(np.round(exact / step), -bound, bound)
    differs = ours != wanted
    # none but where the exact value lies on a boundary to float32's precision, where erf in float32 decides by chance too
    from_boundary = np.abs(np.abs(exact / step) % 1.0 - 0.5)
    assert np.all(from_boundary[differs] < 1e-6 / step + 2.4e-7 * bound)
    assert differs.sum() <= 3


@pytest.mark.slow
def test_every_hundred_and_first_float32_input_up_to_eight_gives_the_exact_value_to_one_in_a_million():
    """Bit patterns in steps of 101, which is prime to every power of two, against scipy's erfc in float64."""
    from scipy.special import erfc

    apply = jax.jit(gelu_for_integers)
    last = np.float32(8.0).view(np.uint32)
    for first in range(0, int(last), 101 * 2**20):
        patterns = np.arange(first, min(first + 101 * 2**20, int(last)), 101, dtype=np.uint32)
        for sign in (1, -1):
            x = sign * patterns.view(np.float32)
            exact = 0.5 * x.astype(np.float64) * erfc(-x.astype(np.float64) / math.sqrt(2))
            np.testing.assert_allclose(np.asarray(apply(x), np.float64), exact, atol=1e-6, rtol=2.4e-7)


@pytest.mark.parametrize("largest", [4.5, 30.0, 3000.0])
def test_gradients_are_those_of_the_exact_gelu(largest):
    x = jnp.linspace(-largest, largest, 101)
    ours = jax.vmap(jax.grad(gelu_for_integers))(x)
    exact = jax.vmap(jax.grad(lambda value: jax.nn.gelu(value, approximate=False)))(x)
    np.testing.assert_allclose(ours, exact, atol=1e-5)  # the distribution function is good to 3e-7, erf's to as much
