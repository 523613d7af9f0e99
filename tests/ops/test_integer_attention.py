"""q k^T and p v as integer products: against NumPy integers, in the lowered program, with registers and under deletion."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import BlockRegister
from regcache_jax.core.scheme import INPUTS, Scheme
from regcache_jax.encoders.encoder import encode, encode_image
from regcache_jax.ops.attention import Rounding, attend, integer_logits, integer_mix
from regcache_jax.ops.half_octaves import half_octaves
from regcache_jax.quantization.calibration import observe
from regcache_jax.quantization.methods.observed import observed
from regcache_jax.quantization.methods.table import METHODS
from regcache_jax.quantization.quantize import quantize

BOTH = ("qk", "pv")
run = jax.jit(encode_image)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(values, scale, bits):
    largest = 2 ** (bits - 1) - 1
    return np.clip(np.round(values * (np.float32(1) / scale)), -largest, largest).astype(np.int64)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("measured", [False, True])
def test_logits_and_mixed_values_equal_numpys_integers(bits, measured):
    query, key, value = drawn(2, 5, 3, 8), drawn(2, 6, 3, 8, seed=1), drawn(2, 6, 3, 8, seed=2)
    terms = np.random.default_rng(3).uniform(0, 1, (2, 3, 5, 6)).astype(np.float32)
    largest = np.float32(2 ** (bits - 1) - 1)
    if measured:  # a scale a token of queries and keys, one a channel of values
        scales = {}
        steps = [np.abs(each).max(axis=3, keepdims=True) / largest for each in (query, key)]
        steps.append(np.abs(value).max(axis=1, keepdims=True) / largest)
    else:
        scales = {name: jnp.full((1, 1, 1, 1), 0.02, jnp.float32) for name in ("query", "key", "value")}
        steps = [np.full((1, 1, 1, 1), 0.02, np.float32)] * 3
    rounding = Rounding(BOTH, bits, scales, measured, None)
    q, k, v = (integers(each, step, bits) for each, step in zip((query, key, value), steps, strict=True))
    found = integer_logits(jnp.asarray(query), jnp.asarray(key), rounding)
    expected = np.einsum("bthk,bshk->bhts", q * steps[0], k * steps[1]) * 8**-0.5
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32 scales beside float64
    if measured:  # the terms' scale, too, is given: softmax has its range
        rounding = rounding._replace(per_token=False, scales={"value": jnp.float32(0.02).reshape(1, 1, 1, 1)})
        v, steps[2] = integers(value, np.float32(0.02), bits), np.float32(0.02)
    p = np.clip(np.round(terms * 2 * largest), 0, 2 * largest) / (2 * largest)
    mixed = integer_mix(jnp.asarray(terms), jnp.asarray(value), rounding)
    # an unsigned grid for softmax: the same integers but where a term stands on the edge of two, half a step apart
    np.testing.assert_allclose(mixed, np.einsum("bhts,bshk->bthk", p, v * steps[2]), atol=0.02 * largest / largest / 2)
    low = jnp.float32(2**-3 / largest)
    twice = integer_mix(jnp.asarray(terms), jnp.asarray(value), rounding._replace(low=low))
    small_steps = np.round(terms / np.float32(low)) * np.float32(low)
    p = np.where(terms < 2**-3, small_steps, np.round(terms * largest) / largest)
    np.testing.assert_allclose(
        twice, np.einsum("bhts,bshk->bthk", p, v * steps[2]), atol=1e-4
    )  # float32 beside float64


HALF_OCTAVES = {  # zkkli/RepQ-ViT @a160561, `LogSqrt2Quantizer.quantize` with delta 1: bits 4, bits 3
    1.0: (1.0, 1.0),
    0.9: (1.0, 1.0),
    0.8: (0.7071067690849304, 0.7071067690849304),
    0.5: (0.5, 0.5),
    0.3: (0.3535533845424652, 0.3535533845424652),
    0.1: (0.0883883461356163, 0.0883883461356163),
    0.03: (0.03125, 0.0),
    0.01: (0.011048543266952038, 0.0),
    0.0051: (0.005524271633476019, 0.0),
    0.002: (0.0, 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "column"), [(4, 0), (3, 1), (8, 0)])
def test_a_softmax_in_half_octaves_is_that_of_the_authors_code_in_two_integer_products(bits, column):
    terms = jnp.asarray(list(HALF_OCTAVES), jnp.float32)
    even, odd = half_octaves(terms, bits)  # of 8 bits, int8 holds the 16 levels that 4 bits have
    assert even.dtype == odd.dtype == jnp.int8 and not (even * odd).any()
    official = [each[column] for each in HALF_OCTAVES.values()]
    simulated = -(np.asarray(even, np.float64) + np.asarray(odd, np.float64) * 2**-0.5) / 128
    np.testing.assert_allclose(simulated, official, rtol=1e-6)  # float32
    value, scale = drawn(1, 10, 1, 3), np.float32(0.02)
    rounding = Rounding(("pv",), bits, {"value": jnp.full((1, 1, 1, 1), scale)}, False, None, half_octaves=True)
    mixed = integer_mix(terms.reshape(1, 1, 1, 10), jnp.asarray(value), rounding)
    expected = np.array(official) @ (integers(value[0, :, 0], scale, bits) * scale)
    np.testing.assert_allclose(mixed[0, 0, 0], expected, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda value: jnp.sum(integer_mix(terms.reshape(1, 1, 1, 10), value, rounding)))(
        jnp.asarray(value)
    )
    inside = np.abs(value[0, :, 0]) <= scale * 2 ** (bits - 1) - scale
    np.testing.assert_allclose(slope[0, :, 0], np.array(official)[:, None] * inside, atol=1e-6)


def test_half_octaves_need_an_integer_product():
    with pytest.raises(UserError, match="add pv to the products"):
        Scheme(softmax="log-sqrt2", products=("qk",))


@pytest.mark.slow
def test_a_term_of_nothing_adds_nothing():
    value = jnp.asarray(drawn(1, 4, 2, 3))
    rounding = Rounding(("pv",), 8, {}, True, None)
    terms = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (1, 2, 3, 4)), jnp.float32).at[..., 2].set(0.0)
    other = integer_mix(terms, value.at[:, 2].multiply(0.5), rounding)
    np.testing.assert_allclose(
        integer_mix(terms, value, rounding), other, atol=0.01
    )  # the measured scales differ a little


@pytest.mark.slow
def test_eight_bits_stay_near_float_attention_and_gradients_flow():
    query, key, value = (jnp.asarray(drawn(2, 6, 3, 8, seed=seed)) for seed in range(3))
    rounding = Rounding(BOTH, 8, {}, True, None)

    def loss(query, key, value, rounding):
        return jnp.sum(jnp.sin(attend(query, key, value, rounding=rounding).mixed))

    exact = attend(query, key, value).mixed
    np.testing.assert_allclose(attend(query, key, value, rounding=rounding).mixed, exact, atol=0.03)  # eight bits of 3
    slopes = [jax.grad(loss, (0, 1, 2))(query, key, value, each) for each in (None, rounding)]
    for one, other in zip(*slopes, strict=True):
        np.testing.assert_allclose(other, one, atol=0.05)


@pytest.mark.slow
def test_tokens_keep_their_resolution_where_a_register_takes_nearly_all_attention():
    query, key, value = (jnp.asarray(drawn(2, 6, 3, 8, seed=seed)) for seed in range(3))
    nothing = jnp.zeros((1, 3, 8))  # so that what is mixed is the tokens' share alone, a two-thousandth of their values
    register = BlockRegister(nothing, nothing, jnp.full((1, 3), 9.0))
    exact = attend(query, key, value, register=register).mixed
    assert float(jnp.abs(exact).max()) < 0.02
    rounded = attend(query, key, value, register=register, rounding=Rounding(("pv",), 8, {}, True, None)).mixed
    np.testing.assert_allclose(
        rounded, exact, atol=0.02 * float(jnp.abs(exact).max())
    )  # eight bits of terms and values


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["static", "group", "token"])
@pytest.mark.parametrize("family", ["clip", "dinov2"])
def test_the_lowered_program_multiplies_integers_in_attention_too(activations, family):
    encoder, images = small.encoder(family), small.images(8)
    scheme = Scheme(activations=activations, products=BOTH)
    quantized = quantize(encoder, images, scheme, small.plan(2))
    reference = run(encoder.with_plan(small.plan(2)), images)
    assert float(jnp.sum(run(quantized, images) * reference, axis=-1).min()) > 0.98 * float(
        jnp.sum(reference**2, -1).min()
    )
    lines = jax.jit(encode_image).lower(quantized, images).as_text().splitlines()
    batched = [line for line in lines if "dot_general" in line and "batching_dims" in line]
    tokens = [line for line in batched if "xi8>" in line]
    assert tokens and all("xi32>" in line for line in tokens)
    # two scans (before and behind the deletion and the registers); in float only the registers' own share
    assert len(tokens) == 4 and all("x17x17x" not in line for line in batched if line not in tokens)


@pytest.mark.slow
def test_search_form_serving_form_and_padded_rows_agree():
    images = small.images(8)
    quantized = quantize(small.encoder("clip"), images, Scheme(products=BOTH), small.plan(2))
    searched = small.search_form(quantized, images).features
    np.testing.assert_allclose(encode(quantized, images).features, searched, atol=1e-4)
    np.testing.assert_allclose(encode(quantized, images, tile=8).features, searched, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smoothquant", "awq"])
def test_values_that_are_rounded_are_not_rescaled(name):
    encoder, images = small.encoder("clip"), small.images(8)
    prepared = METHODS[name].prepare(
        encoder, observed(encoder, [images], METHODS[name].needs), Scheme(products=("pv",))
    )
    before, after = (each.params.image.blocks.attention for each in (encoder, prepared))
    np.testing.assert_array_equal(after.value.bias, before.value.bias)  # in no site's units but its own
    np.testing.assert_array_equal(after.out.kernel, before.out.kernel)
    assert not np.array_equal(after.key.kernel, before.key.kernel)


@pytest.mark.slow
def test_a_calibration_without_queries_is_not_enough_and_says_so():
    encoder, images = small.encoder("clip"), small.images(8)
    scheme = Scheme(products=("qk",), estimator="mse")
    with pytest.raises(UserError, match="did not count query"):
        quantize(encoder, None, scheme, calibration=observe(encoder, [images]))
    kept = observe(encoder, [images], inputs=scheme.inputs)
    quantized = quantize(encoder, None, scheme, calibration=kept)
    grids = quantized.params.image.blocks.grids
    assert {site for site in INPUTS if grids.of(site).scale is not None} == {"qkv", "out", "fc1", "fc2", "query", "key"}
    with pytest.raises(UserError, match="need quantised activations"):
        dataclasses.replace(scheme, activations="float", estimator="absmax")
    with pytest.raises(UserError, match="known are qk, pv"):
        Scheme(products=("qv",))
