"""The integers, against plain NumPy: int8 values, int32 sums, no float copy of a weight, nothing but int8 products."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Grids, QuantizedTensor
from regcache_jax.core.spec import Protected
from regcache_jax.data.cut import in_batches
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.encoders.rounding import token_scale
from regcache_jax.ops.integers import (
    fake_quantize,
    largest_integer,
    made_apart,
    made_once,
    made_once_wide,
    quantize_weight,
    quantized_dense,
)
from regcache_jax.ops.integers import quantize as to_integers
from regcache_jax.quantization.calibrate import calibrate
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.quantize import quantize

BITS = [8, 6, 4]


def rounded(values: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """The definition: round to even, clip to the symmetric range."""
    bound = 2 ** (bits - 1) - 1
    return np.clip(np.round(values * (np.float32(1.0) / scale)), -bound, bound).astype(np.int32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_stored_weights_are_int8_within_their_bits_and_equal_the_definition(bits, per_channel):
    kernel = np.random.default_rng(bits).normal(size=(3, 16, 4, 2)).astype(np.float32)
    weight = quantize_weight(jnp.asarray(kernel), bits, (1,), per_channel)
    assert weight.values.dtype == jnp.int8 and weight.scale.dtype == jnp.float32
    assert int(jnp.max(jnp.abs(weight.values.astype(jnp.int32)))) == largest_integer(bits)
    axes = (1,) if per_channel else (1, 2, 3)
    scale = np.abs(kernel).max(axis=axes, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    np.testing.assert_allclose(weight.scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(weight.values, rounded(kernel, np.asarray(weight.scale), bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shared", ["static", "group", "tensor", "token"])
def test_products_equal_an_int32_reference(bits, shared):
    rng = np.random.default_rng(bits)
    inputs = rng.normal(size=(2, 5, 16)).astype(np.float32)
    weight = jax.tree.map(
        lambda leaf: leaf[0], quantize_weight(jnp.asarray(rng.normal(size=(1, 16, 7)), jnp.float32), bits, (1,))
    )
    groups = np.array([0.05, 0.01, 0.01, 0.03, 0.03], np.float32).reshape(1, 5, 1)  # five tokens
    given = {"static": jnp.full((1, 1, 1), 0.02, jnp.float32), "group": jnp.asarray(groups)}.get(shared)
    (found,) = jax.jit(lambda x: quantized_dense(x, (weight,), given, bits, 1, shared == "token"))(inputs)
    bound = np.float32(2 ** (bits - 1) - 1)
    scale = {
        "static": np.full((1, 1, 1), 0.02, np.float32),
        "group": groups,
        "tensor": np.abs(inputs).max(keepdims=True) / bound,
        "token": np.abs(inputs).max(axis=-1, keepdims=True) / bound,
    }[shared]
    sums = np.einsum("bnd,df->bnf", rounded(inputs, scale, bits), np.asarray(weight.values, np.int32))
    expected = sums.astype(np.float32) * (scale * np.asarray(weight.scale))
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)  # the order of the two scales' product


@functools.partial(jax.jit, static_argnames=("bits", "per_token"))
def dense_in_integers(inputs, values, weight_scale, scale, bits, per_token):
    return quantized_dense(inputs, (QuantizedTensor(values, weight_scale),), scale, bits, 1, per_token)[0]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 4, 6, 8]),
    shared=st.sampled_from(["given", "tensor", "token"]),
    magnitude=st.floats(-12, 12),
    clipped=st.floats(0.2, 5.0),
    silent=st.booleans(),
)
def test_any_product_is_the_sum_of_whole_numbers_that_numpy_finds(seed, bits, shared, magnitude, clipped, silent):
    rng, bound = np.random.default_rng(seed), np.float32(2 ** (bits - 1) - 1)
    inputs = np.float32(10.0**magnitude) * rng.standard_normal((2, 5, 16), np.float32)
    inputs[1, 2] *= 100  # a token that stretches a scale which others share
    inputs[0, 0] *= not silent
    values = rng.integers(-bound, bound + 1, (16, 7)).astype(np.int8)
    weight_scale = rng.uniform(0.1, 2.0, (1, 7)).astype(np.float32)
    axes = {"given": (0, 1, 2), "tensor": (0, 1, 2), "token": (2,)}[shared]
    largest = np.abs(inputs).max(axis=axes, keepdims=True)
    scale = np.where(largest == 0, np.float32(1) / bound, largest / bound)  # zeros stay zeros whatever their scale
    given_scale = None if shared != "given" else (scale * np.float32(clipped)).astype(np.float32)
    found = dense_in_integers(inputs, values, weight_scale, given_scale, bits, shared == "token")
    used = scale if given_scale is None else given_scale
    # a value half-way between two integers may fall to either, as the scale's last bit has it: one step of one input
    steps = inputs.astype(np.float64) / used
    doubtful = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 1e-4
    slack = np.einsum("bnd,df->bnf", doubtful.astype(np.int64), np.abs(values.astype(np.int64)))
    sums = np.einsum("bnd,df->bnf", rounded(inputs, used, bits).astype(np.int64), values.astype(np.int64))
    whole = np.asarray(found, np.float64) / (used.astype(np.float64) * weight_scale)
    # float32: a sum below 2**15 times two scales, each good to 2**-24
    assert (np.abs(whole - sums) <= slack + 1e-6 * np.abs(sums) + 1e-6).all()


def test_one_input_of_heads_serves_several_kernels():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    kernels = tuple(jnp.asarray(rng.normal(size=(1, 4, 3, 6)), jnp.float32) for _ in range(2))
    weights = tuple(jax.tree.map(lambda leaf: leaf[0], quantize_weight(kernel, 8, (1, 2))) for kernel in kernels)
    found = jax.jit(lambda x: quantized_dense(x, weights, None, 8, 2, True))(inputs)
    scale = np.abs(inputs).max(axis=(2, 3), keepdims=True) / np.float32(127)  # one a token, over all its heads
    for product, weight in zip(found, weights, strict=True):
        sums = np.einsum("bnhk,hkd->bnd", rounded(inputs, scale, 8), np.asarray(weight.values, np.int32))
        np.testing.assert_allclose(product, sums * (scale[..., 0] * np.asarray(weight.scale[0])), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("shared", ["static", "token"])
def test_the_gradient_passes_straight_through_the_rounding_and_stops_where_a_given_range_ends(shared):
    rng = np.random.default_rng(1)
    inputs = jnp.asarray(rng.normal(size=(2, 5, 16)), jnp.float32)
    towards = rng.normal(size=(2, 5, 7)).astype(np.float32)
    kernel = jnp.asarray(rng.normal(size=(1, 16, 7)), jnp.float32)
    weight = jax.tree.map(lambda leaf: leaf[0], quantize_weight(kernel, 8, (1,)))
    given = jnp.full((1, 1, 1), 0.01, jnp.float32) if shared == "static" else None  # reaches to 1.27
    slope = jax.grad(lambda x: jnp.sum(quantized_dense(x, (weight,), given, 8, 1, shared == "token")[0] * towards))(
        inputs
    )
    inside = np.abs(inputs) <= 1.27 if shared == "static" else np.ones_like(inputs)
    np.testing.assert_allclose(slope, towards @ np.asarray(weight.dequantize()).T * inside, rtol=1e-5, atol=1e-5)


def test_class_token_trained_registers_and_patches_read_their_own_scale():
    scale = token_scale(jnp.asarray([1.0, 2.0, 3.0]), 6, Protected(1, 2))
    np.testing.assert_array_equal(scale[0, :, 0], [1, 2, 2, 3, 3, 3])
    assert token_scale(jnp.float32(0.5), 6, Protected(1, 2)).shape == (1, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("apply", [to_integers, jax.jit(to_integers, static_argnums=(1, 2))])
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_the_nearest_and_half_way_the_even_ones(apply, bits):
    """Compiled too: an XLA that folded the rounding away would pass on what is between two integers."""
    halves = np.arange(-140, 140, 0.5, dtype=np.float32)
    inputs = np.concatenate([halves, np.nextafter(halves, np.float32(-1e9)), np.nextafter(halves, np.float32(1e9))])
    found = apply(jnp.asarray(inputs), bits, (0,), jnp.float32([1.0]))[0].values
    largest = largest_integer(bits)
    np.testing.assert_array_equal(found, np.clip(np.rint(inputs), -largest, largest))


@pytest.mark.slow
def test_an_all_zero_input_and_an_all_zero_channel_give_zeros():
    weight = jax.tree.map(lambda leaf: leaf[0], quantize_weight(jnp.zeros((1, 8, 3)), 8, (1,)))
    for per_token in (True, False):
        (found,) = quantized_dense(jnp.zeros((2, 4, 8)), (weight,), None, 8, 1, per_token)
        np.testing.assert_array_equal(found, np.zeros((2, 4, 3)))


@pytest.mark.slow
def test_fake_quantisation_lies_on_the_integers_grid_and_passes_gradients():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    integers, _ = to_integers(values, 6, (0, 1))
    np.testing.assert_allclose(fake_quantize(values, 6, (0, 1)), integers.dequantize(), rtol=1e-6)
    scale = jnp.full((1, 1), 0.01, jnp.float32)  # range 0.31: larger values are clipped and get no gradient
    slope = jax.grad(lambda x: jnp.sum(fake_quantize(x, 6, (0, 1), scale)))(values)
    np.testing.assert_array_equal(slope, (np.abs(values) <= 0.31).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["static", "token"])
def test_the_lowered_encoder_holds_int8_products_and_no_float_copy_of_a_weight(activations):
    images = small.images(2)
    encoder = quantize(
        small.encoder("clip"), images, Scheme(activations=activations), small.random_plan(start=1, stop=2)
    )
    lowered = jax.jit(encode_image).lower(encoder, jnp.asarray(images))
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line and "xi8>" in line]
    assert products and all(re.search(r"xi8>, tensor<[\dx]+xi8>\) -> tensor<[\dx]+xi32>", line) for line in products)
    shapes = {"24,3,8": "query", "3,8,24": "out", "24,40": "fc1", "40,24": "fc2"}
    compiled = lowered.compile().as_text()
    for shape, name in shapes.items():
        assert f"s8[{shape}]" in compiled or f"s8[1,{shape}]" in compiled or f"s8[3,{shape}]" in compiled, name
        assert f"f32[{shape}]" not in compiled and f"f32[3,{shape}]" not in compiled, f"a float copy of {name}"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "products"), [("no biases", 6), ("dinov2-swiglu", 7)])
def test_a_block_is_integer_products_but_for_attention_itself(kind, products):
    encoder = quantize(small.encoder(kind), small.images(2), Scheme())
    text = jax.jit(encode_image).lower(encoder, jnp.asarray(small.images(2))).as_text()
    dots = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    integer = [line.rsplit(" : ", 1)[1] for line in dots if "xi8>" in line]
    assert len(integer) == products  # one scan: query, key, value, out, fc1, fc2 (and gate)
    assert all(
        re.fullmatch(r"\(tensor<[\dx]+xi8>, tensor<[\dx]+xi8>\) -> tensor<[\dx]+xi32>", line) for line in integer
    )
    assert len([line for line in dots if "batching_dims" in line]) == 2  # query with key, weights with value


@pytest.mark.slow
def test_static_scales_must_be_calibrated_and_only_once():
    encoder = small.encoder("siglip")
    with pytest.raises(UserError, match="must be calibrated"):
        quantize(encoder, None, Scheme())
    quantized = quantize(encoder, small.images(2), Scheme())
    with pytest.raises(UserError, match="quantised already"):
        quantize(quantized, small.images(2), Scheme())
    broken = with_blocks(quantized, quantized.params.image.blocks.replace(grids=Grids()))
    with pytest.raises(UserError, match="never calibrated"):
        encode_image(broken, jnp.asarray(small.images(1)))


@pytest.mark.slow
def test_calibration_sees_the_plan_and_every_image_once():
    encoder, images = small.encoder("no biases"), small.images(5)
    together = calibrate(encoder, [images], Scheme())
    apart = calibrate(encoder, in_batches(images, 2), Scheme())
    for site in SITES:
        np.testing.assert_allclose(together[site], apart[site], rtol=1e-6)
    with_plan = calibrate(encoder.with_plan(small.random_plan(start=0, stop=3, copies=15.0)), [images], Scheme())
    assert (np.asarray(with_plan["out"]) != np.asarray(together["out"])).any()


@pytest.mark.slow
def test_a_float_site_keeps_its_float_kernel():
    encoder = quantize(small.encoder("siglip"), small.images(2), Scheme(float_sites=("fc2",)))
    blocks = encoder.params.image.blocks
    assert blocks.mlp.fc2.kernel.dtype == jnp.float32
    assert blocks.mlp.fc1.kernel.values.dtype == jnp.int8
    assert encode_image(encoder, jnp.asarray(small.images(1))).shape == (1, 24)


@pytest.mark.slow
def test_bfloat16_weights_run_beside_integer_kernels():
    encoder, images = small.encoder("clip"), small.images(4)
    exact = encode_image(encoder, jnp.asarray(images))
    halved = quantize(encoder, images, Scheme()).astype(jnp.bfloat16)
    assert halved.params.image.blocks.mlp.fc1.kernel.scale.dtype == jnp.float32
    assert halved.params.image.blocks.grids.qkv.scale.dtype == jnp.float32
    cosine = jnp.sum(encode_image(halved, jnp.asarray(images)) * exact, axis=-1)
    assert float(jnp.min(cosine)) > 0.98  # eight bits of weights, activations and of bfloat16's mantissa


@pytest.mark.parametrize("name", ["w9a8", "int8", "w1", "W4A44"])
def test_unknown_schemes_are_refused_with_the_known_ones(name):
    with pytest.raises(UserError, match="try w8a8, w6a6, w4a4"):
        Scheme.named(name)


def test_schemes_have_names_and_survive_json():
    scheme = Scheme.named("w6a4", activations="group", weights="tensor", float_sites=("fc2",))
    assert (scheme.name, Scheme.from_json(scheme.to_json())) == ("w6a4", scheme)
    assert Scheme.named("float") is None
    for wrong in ({"weight_bits": 1}, {"activation_bits": 9}, {"float_sites": ("fc3",)}):
        with pytest.raises(UserError):
            Scheme(**wrong)


@pytest.mark.slow
def test_integers_held_apart_or_wide_for_a_chip_are_the_same_for_every_reader():
    values = jnp.arange(-127, 128, dtype=jnp.int8)
    kernels = (jnp.ones(3, jnp.int8), jnp.zeros(2, jnp.int8))
    for form in (made_once, made_apart, made_once_wide):
        for (own, kernel), asked in zip(jax.jit(form)(values, kernels), kernels, strict=True):
            np.testing.assert_array_equal(own, values)
            np.testing.assert_array_equal(kernel, asked)
            assert own.dtype == jnp.int8
