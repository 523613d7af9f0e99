"""What the authors' own code computes on one random layer, as committed numbers.

Made by running on the arrays of `layer()`: mit-han-lab/smoothquant @c61476d (`smooth_ln_fcs`, alpha 0.7); zkkli/RepQ-ViT
@a160561 (the re-parameterisation of `test_quant.py`, ranges from the extremes); IST-DASLab/gptq @2d65066 (`fasterquant` with
a symmetric grid of -3..3 whose scale is absmax / 3).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from regcache_jax.quantization.methods.gptq import compensate
from regcache_jax.quantization.methods.repq_vit import reparameterization
from regcache_jax.quantization.methods.smoothquant import smoothing_factors

FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # float32 in another order of operations


def layer():
    """Inputs [32, 6] with one wide channel, a kernel [6, 4], a norm's scale and bias, and inputs that are correlated."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((32, 6)) * np.array([1, 1, 8, 0.5, 1, 3]) + np.array([0, 0.5, 4, 0, -1, 0])
    kernel = rng.standard_normal((6, 4)).astype(np.float32)
    scale, bias = rng.uniform(0.5, 1.5, 6).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    inputs = inputs.astype(np.float32)
    return inputs, kernel, scale, bias, (inputs @ rng.standard_normal((6, 6))).astype(np.float32)


def test_smoothing_factors_are_those_of_the_authors_code():
    inputs, kernel, *_ = layer()
    official = [1.5740177631, 1.7636663914, 6.7083144188, 1.0513783693, 1.6564551592, 3.7134692669]
    found = smoothing_factors(jnp.abs(inputs).max(axis=0), jnp.asarray(kernel), 0.7)
    np.testing.assert_allclose(found, official, **FLOAT32)


def test_reparameterised_norm_and_kernel_are_those_of_the_authors_code():
    inputs, kernel, scale, bias, _ = layer()
    factor, shift = reparameterization(
        jnp.asarray(inputs.min(axis=0)), jnp.asarray(inputs.max(axis=0)), symmetric=False
    )
    official_scale = [1.3254508972, 1.5916786194, 0.1685384810, 6.1927852631, 2.9342913628, 0.8482784629]
    official_bias = [-0.8748838902, -0.7612313032, -1.3357431889, 7.0780372620, 5.7100019455, -0.8338851929]
    official_kernel_row = [0.5144520402, -0.0239534657, -0.1340174377, 0.7778342366]
    official_layer_bias = [-4.3913388252, -4.0942487717, -7.1950812340, 1.0543453693]
    np.testing.assert_allclose(scale / factor, official_scale, **FLOAT32)
    np.testing.assert_allclose(bias / factor - shift, official_bias, **FLOAT32)
    np.testing.assert_allclose(kernel[0] * factor[0], official_kernel_row, **FLOAT32)
    np.testing.assert_allclose(shift @ (kernel * factor[:, None]), official_layer_bias, **FLOAT32)


GPTQ = {
    False: [[3, 0, -1, 2], [-3, -1, -1, 1], [-2, -2, -3, 1], [2, -1, 0, -2], [-1, 3, 0, 3], [-2, 2, 1, 1]],
    True: [[2, 0, 0, 2], [-3, -1, -1, 1], [-1, -1, -3, 1], [2, -1, 0, -2], [-1, 3, 0, 3], [-2, 1, -1, 1]],
}
NEAREST = [[3, 0, -1, 2], [-3, -1, -1, 1], [-2, -1, -3, 1], [2, -1, 0, -2], [-1, 3, 0, 3], [-2, 1, 0, 1]]


@pytest.mark.parametrize("ordered", [False, True])
def test_compensated_integers_are_those_of_the_authors_code(ordered):
    _, kernel, _, _, inputs = layer()
    scale = np.abs(kernel).max(axis=0, keepdims=True) / 3
    moments = jnp.asarray(2 * inputs.T @ inputs / len(inputs))
    found = compensate(jnp.asarray(kernel), jnp.asarray(scale), moments, 3, ordered)
    np.testing.assert_array_equal(found, GPTQ[ordered])
    assert (np.asarray(found) != np.array(NEAREST)).any()  # the case is one in which compensation matters
