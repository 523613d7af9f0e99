"""Methods that make up for rounding: twin ranges, ridge regression, learned roundings; each against plain numpy or a small case."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.data.cut import in_batches
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.encoders.rounding import Run, dense
from regcache_jax.ops.integers import fake_quantize
from regcache_jax.quantization.methods import adaround, erq
from regcache_jax.quantization.methods.fisher import felt_tokens, output_gradients
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.methods.observed import observed
from regcache_jax.quantization.methods.table import methods_of
from regcache_jax.quantization.quantize import quantize
from regcache_jax.studies.grid import label_free_error

encode = jax.jit(encode_image)


def batches(size: int = 16):
    return list(in_batches(small.images(), size, fill=False))


def error(encoder, scheme):
    images = small.images(32, seed=5)
    found, exact = (np.asarray(encode(each, images)) for each in (quantize(encoder, small.images(), scheme), encoder))
    return label_free_error(found, exact)


@pytest.mark.slow
def test_twin_halves_of_an_input_are_two_grids_by_hand():
    quantized = quantize(small.encoder("siglip"), small.images(), Scheme(8, 4, method="ptq4vit"))
    blocks = quantized.params.image.blocks
    block = jax.tree.map(lambda leaf: leaf[1], blocks)
    above, below = float(block.grids.fc2.scale), float(block.grids.fc2.negative)
    assert below * 7 == pytest.approx(0.17, abs=0.01)  # all of GELU's negative half
    inputs = np.random.default_rng(0).uniform(-0.17, 1.5, (1, 3, 40)).astype(np.float32)
    positive = np.clip(np.round(np.maximum(inputs, 0) / above), 0, 7) * above
    negative = np.clip(np.round(np.minimum(inputs, 0) / below), -7, 0) * below
    weight = np.asarray(block.mlp.fc2.kernel.dequantize(), np.float64)
    expected = (positive + negative) @ weight + np.asarray(block.mlp.fc2.bias)
    options = {"site": "fc2", "run": Run(quantized.spec.image.blocks, quantized.scheme), "grid": block.grids.fc2}
    (found,) = dense(jnp.asarray(inputs), (block.mlp.fc2,), **options)
    np.testing.assert_allclose(found, expected, atol=2e-5)  # float32 beside float64
    simulated = block.mlp.fc2.replace(kernel=block.mlp.fc2.integers.dequantize())
    (again,) = dense(jnp.asarray(inputs), (simulated,), **options)
    np.testing.assert_allclose(again, found, atol=2e-5)


@pytest.mark.slow
def test_softmax_gets_a_second_range_only_where_its_product_is_integer():
    encoder, images = small.encoder("clip"), small.images()
    scheme = Scheme(4, 4, method="ptq4vit", products=("pv",))
    grids = quantize(encoder, images, scheme).params.image.blocks.grids
    ends = np.log2(np.asarray(grids.softmax_low) * 7)
    np.testing.assert_allclose(ends, np.round(ends), atol=1e-5)  # powers of two
    plain = quantize(encoder, images, Scheme(4, 4, method="ptq4vit"))
    assert plain.params.image.blocks.grids.softmax_low is None
    gated = quantize(small.encoder("dinov2-swiglu"), images, Scheme(method="ptq4vit"))
    assert gated.params.image.blocks.grids.fc2.negative is None  # a gated product has no short negative half


@pytest.mark.slow
def test_gradients_by_token_are_those_of_the_bias_summed_and_of_finite_differences():
    encoder, images = small.encoder("clip").with_plan(small.plan()), small.images(2)
    spec, params = encoder.spec.image, encoder.params.image
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (2, 16)), jnp.float32)
    gradients, inputs = output_gradients(params, images, encoder.plan, signs, spec=spec, unit=True)

    def along(bias):
        blocks = params.blocks.with_layers({"fc1": params.blocks.mlp.fc1.replace(bias=bias)})
        return jnp.sum(encode_image(with_blocks(encoder, blocks), images) * signs)

    expected = jax.grad(along)(params.blocks.mlp.fc1.bias)
    np.testing.assert_allclose(gradients["fc1"].sum(axis=(1, 2)), expected, atol=1e-4)
    assert {name: leaf.shape[:3] for name, leaf in inputs.items()} == dict.fromkeys(SITES, (3, 2, 17))
    felt = felt_tokens(encoder, batches()[0])
    assert felt.inputs["out"].shape == felt.gradients["query"].shape == (3, 272, 24)


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["static", "token"])
def test_moments_of_rounded_inputs_are_numpys(activations):
    encoder = small.encoder("dinov2").with_plan(small.plan(delete_count=2))
    scheme = Scheme(8, 4, activations)
    observation = observed(encoder, batches(9), ("images",), scheme if scheme.calibrated else None)
    squares, products = erq.rounded_moments(encoder, observation, scheme)["fc1"][2]
    seen = small.search_form(encoder, small.images(), ("fc1", "present")).collected
    rows = np.asarray(seen["fc1"][2])[np.asarray(seen["present"][2])].astype(np.float64)
    scale = np.abs(rows).max(axis=1, keepdims=True) / 7 if activations == "token" else np.abs(rows).max() / 7
    rounded = np.clip(np.round(rows / scale), -7, 7) * scale
    lost = rows - rounded
    about = [each - each.mean(axis=0) for each in (rounded, lost)]
    # a value at the edge between two integers may fall to either side in another order of additions
    np.testing.assert_allclose(squares, about[0].T @ about[0] / len(rows), atol=0.02)
    np.testing.assert_allclose(products, about[0].T @ about[1] / len(rows), atol=0.02)


def test_ridge_regression_is_the_least_of_its_cost():
    rng = np.random.default_rng(0)
    inputs, kernel = rng.standard_normal((200, 6)), rng.standard_normal((6, 3))
    rounded = np.round(inputs / 0.8) * 0.8

    def cost(changed):
        return np.square(inputs @ kernel - rounded @ changed).sum() / 200 + 0.1 * np.square(changed - kernel).sum()

    squares, products = (jnp.asarray(rounded.T @ each / 200, jnp.float32) for each in (rounded, inputs - rounded))
    found = np.asarray(
        erq.reduce_activation_error(squares, products, jnp.asarray(kernel, jnp.float32), jnp.float32(0.1))
    )
    assert cost(found) < 0.99 * cost(kernel)
    for _ in range(20):
        assert cost(found) <= cost(found + 0.01 * rng.standard_normal(found.shape)) + 1e-6


@pytest.mark.slow
def test_learned_roundings_are_down_or_up_and_lower_the_cost_they_are_learned_under(monkeypatch):
    encoder = small.encoder("siglip")
    images, scheme = small.images(), Scheme(3, 8)
    plain = quantize(encoder, images, scheme)
    learned = quantize(encoder, images, dataclasses.replace(scheme, method="fima_q"))
    kernels = (each.params.image.blocks.mlp.fc1.kernel for each in (plain, learned))
    nearest, found = (np.asarray(kernel.values, np.int64) for kernel in kernels)
    steps = encoder.params.image.blocks.mlp.fc1.kernel / plain.params.image.blocks.mlp.fc1.kernel.scale
    steps = np.clip(np.asarray(steps), -3, 3)
    assert (np.abs(found - steps) <= 1 + 1e-5).all() and (found != nearest).mean() > 0.02
    assert (np.abs(nearest - steps) <= 0.5 + 1e-5).all()
    assert error(encoder, dataclasses.replace(scheme, method="fima_q")) < 0.9 * error(encoder, scheme)


def test_without_steps_learning_leaves_roundings_at_the_nearest():
    steps = jnp.asarray(np.random.default_rng(0).uniform(-7, 7, 1000), jnp.float32)
    hard = jnp.floor(steps) + (adaround.start_of_rounding(steps) >= 0).astype(jnp.float32)
    np.testing.assert_array_equal(hard, np.round(np.asarray(steps)))
    soft = jnp.floor(steps) + adaround.up(adaround.start_of_rounding(steps))
    np.testing.assert_allclose(soft, steps, atol=1e-5)


@pytest.mark.slow
def test_the_gradient_of_a_scale_is_that_of_the_rounded_steps():
    values, scale = jnp.array([[0.3, -1.24, 9.0, -9.0]]), jnp.full((1, 1), 0.5)
    slope = jax.grad(lambda scale: jnp.sum(fake_quantize(values, 4, (0, 1), scale) * jnp.array([1.0, 2.0, 4.0, 8.0])))(
        scale
    )
    # steps 0.6, -2.48, 18, -18: rounded less exact inside, the last integer outside
    np.testing.assert_allclose(slope, [[0.4 + 2 * 0.48 + 4 * 7 - 8 * 7]], rtol=1e-5)


@pytest.mark.slow
def test_what_cannot_go_together_is_refused():
    encoder, images = small.encoder("clip"), small.images()
    for scheme, message in (
        (Scheme(method="ptq4vit", symmetric=False), "ptq4vit goes with symmetric static"),
        (Scheme(method="ptq4vit", activations="token"), "ptq4vit goes with symmetric static"),
        (Scheme(method="fima_q", symmetric=False), "fima_q goes with"),
        (Scheme(method="erq", activations="float"), "take gptq"),
    ):
        with pytest.raises(UserError, match=message):
            quantize(encoder, images, scheme)
    for wrong, message in (("gptq+fima_q", "only one method"), ("bias_correction+fima_q", "must come before")):
        with pytest.raises(UserError, match=message):
            methods_of(wrong)
