"""What the authors' own code computes on one random layer, as committed numbers.

Made by running on the arrays of `layer()`: mit-han-lab/smoothquant @c61476d (`smooth_ln_fcs`, alpha 0.7); zkkli/RepQ-ViT
@a160561 (the re-parameterisation of `test_quant.py`, ranges from the extremes); IST-DASLab/gptq @2d65066 (`fasterquant` with
a symmetric grid of -3..3 whose scale is absmax / 3); hahnyuan/PTQ4ViT @b42c790 (`PTQSLQuantLinear`, `PostGeluPTQSLQuantLinear`:
one round, 50 candidates, their ranges; where their further integer, -128 or -8, plays no part); ShiheWang/FIMA-Q @64c4b00
(`LossFunction` under `fisher_dplr`, `AdaRoundQuantizer`); zysxmu/ERQ @2f5b4ce (`replace_W` without biases, a penalty of 2);
kriskrisliu/NoisyQuant @ba544d1 (`quant_activation` and the criterion of its search, on our seven amplitudes).

Not held: megvii-research/FQ-ViT. Nothing here is a method of that paper (softmax in whole powers of two, LayerNorms in integers).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regcache_jax.ops.integers import fake_quantize
from regcache_jax.quantization.methods import adaround, fima_q
from regcache_jax.quantization.methods.erq import reduce_activation_error
from regcache_jax.quantization.methods.gptq import compensate
from regcache_jax.quantization.methods.noisyquant import AMPLITUDES, noise_errors
from regcache_jax.quantization.methods.ptq4vit import activation_scale, weight_scales
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


PTQ4VIT = {  # twin, bits: scale of the weights, of the (positive) activations
    (False, 8): (0.019588258117437363, 0.16096365451812744),
    (False, 4): (0.21569553017616272, 2.4416415691375732),
    (True, 8): (0.017863186076283455, 0.1574961096048355),
}


@pytest.mark.slow
@pytest.mark.parametrize(("twin", "bits"), PTQ4VIT)
def test_hessian_guided_scales_are_those_of_the_authors_code(twin, bits):
    inputs, kernel, *_ = (jnp.asarray(each) for each in layer())
    inputs = jax.nn.gelu(inputs, approximate=False) if twin else inputs
    gradients = jnp.asarray(np.random.default_rng(1).standard_normal((32, 4)), jnp.float32)
    levels = 2 ** (bits - 1)
    widest = jnp.max(inputs if twin else jnp.abs(inputs)) / (levels - 0.5)
    negative = jnp.float32(0.16997124254703522 / levels) if twin else None

    def rounded(scale):
        if negative is None:
            return fake_quantize(inputs, bits, (0, 1), scale.reshape(1, 1))
        halves = (jnp.maximum(inputs, 0.0), scale), (jnp.minimum(inputs, 0.0), negative)
        return sum(fake_quantize(half, bits, (0, 1), step.reshape(1, 1)) for half, step in halves)

    exact = inputs @ kernel
    per_tensor = jnp.full((1, 4), jnp.max(jnp.abs(kernel)) / (levels - 0.5))
    weights = weight_scales(rounded(widest), exact, gradients, kernel, per_tensor, bits, False)
    simulated = fake_quantize(kernel, bits, (0,), weights)
    found = activation_scale(inputs, exact, gradients, simulated, widest, negative, bits)
    np.testing.assert_allclose([weights[0, 0], found], PTQ4VIT[twin, bits], **FLOAT32)


@pytest.mark.slow
def test_the_cost_of_an_error_under_diagonal_and_low_rank_is_that_of_the_authors_code():
    rng = np.random.default_rng(2)
    error, gradients, errors = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 10), (2, 10), (2, 10)))
    fisher = fima_q.Fisher(jnp.abs(gradients), jnp.abs(errors))
    np.testing.assert_allclose(fima_q.dplr_loss(jnp.asarray(error), fisher), [5.687777042, 0.809985757], rtol=1e-4)
    padded = fima_q.Fisher(*(jnp.pad(rows, ((0, 3), (0, 0))) for rows in fisher))  # three refreshes to come
    np.testing.assert_allclose(fima_q.dplr_loss(jnp.asarray(error), padded), [5.687777042, 0.809985757], rtol=1e-4)


def test_learned_roundings_begin_where_those_of_the_authors_code_do():
    kernel = layer()[1]
    start = adaround.start_of_rounding(jnp.asarray(kernel / (np.abs(kernel).max(axis=0, keepdims=True) / 7)))
    official = [1.8106553555, 0.8589562178, 0.9498476982, 2.1858584881]
    np.testing.assert_allclose(start[0], official, rtol=1e-4)  # a fraction's last digits, through a logarithm
    soft = [1.0, 0.8914442658424377, 0.9066445827484131, 1.0]
    np.testing.assert_allclose(adaround.up(start[0] + 0.7), soft, atol=1e-5)


def test_the_kernel_that_makes_up_for_rounded_inputs_is_that_of_the_authors_code():
    inputs, kernel, *_ = layer()
    rounded = (np.clip(np.round(inputs / np.float32(0.9)), -7, 7) * np.float32(0.9)).astype(np.float32)
    lost = jnp.asarray(rounded.T @ (inputs - rounded))
    found = reduce_activation_error(jnp.asarray(rounded.T @ rounded), lost, jnp.asarray(kernel), jnp.float32(2.0))
    official = [
        [0.8170866966, -0.1410237104, -0.5932565928, 1.6364904642],
        [-0.2182792425, 0.3083267212, 1.6736260653, -0.2578372955],
        [-1.0829788446, -0.9997699261, -2.5743837357, 1.1314291954],
        [1.0922006369, 0.0863906443, 1.4367364645, -1.7189801931],
        [0.1747888327, 1.7850185633, 1.3715981245, 1.5645051003],
        [-0.6849765182, 0.6459071040, -0.0120032579, 0.5300286412],
    ]
    np.testing.assert_allclose(found, official, rtol=2e-4, atol=2e-4)  # their inverse is explicit, of condition 1e3


NOISYQUANT = {  # bits: the products' squared error with no noise and with a growing share of a step
    8: [0.0093836188, 0.0088846087, 0.0095150378, 0.0093442164, 0.009446824, 0.0116340276, 0.0075358134],
    4: [3.3707213402, 2.7968585491, 3.3371579647, 3.0995635986, 2.8640127182, 3.5577087402, 2.9218797684],
}


@pytest.mark.parametrize("bits", [8, 4])
def test_what_noise_costs_is_what_the_authors_code_finds(bits):
    inputs, kernel, *_ = layer()
    scale = np.abs(inputs).max(keepdims=True)[0] / (2 ** (bits - 1) - 1)
    noise = scale * np.random.default_rng(1).uniform(-1, 1, 6).astype(np.float32)
    errors = [
        noise_errors(inputs[None], kernel[None], scale, np.zeros((1, 1), np.float32), np.float32(a) * noise[None], bits)
        for a in AMPLITUDES
    ]
    np.testing.assert_allclose(np.concatenate(errors), NOISYQUANT[bits], rtol=1e-4)  # float32 sums in another order
