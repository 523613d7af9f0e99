from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES, Rule, Scheme
from regcache_jax.data.cut import in_batches
from regcache_jax.encoders.blocks import run_blocks, segment
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.encoders.rounding import Run, dense
from regcache_jax.quantization import gather
from regcache_jax.quantization.kernels import quantize_kernels, round_to_nearest, site_matrix
from regcache_jax.quantization.methods import by_block, clipping, folding, noisyquant, rotation
from regcache_jax.quantization.methods.awq import importance_factors
from regcache_jax.quantization.methods.observed import observed
from regcache_jax.quantization.methods.repq_vit import reparameterization
from regcache_jax.quantization.methods.statistics import sampled_rows
from regcache_jax.quantization.methods.table import METHODS, methods_of
from regcache_jax.quantization.quantize import quantize

PREPARING = [name for name, method in METHODS.items() if method.prepare]
W4A6 = Scheme(4, 6)
encode = jax.jit(encode_image)


def batches():
    return list(in_batches(small.images(), 16, fill=False))


def prepared_by(name, encoder, scheme):
    return METHODS[name].prepare(encoder, observed(encoder, batches(), METHODS[name].needs), scheme)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [(name, kind) for name in PREPARING for kind in small.KINDS if (name, kind) != ("rotation", "inner norms")],
)
def test_a_preparing_method_leaves_the_float_encoder_and_its_registers_alone(name, family):
    encoder = small.encoder(family).with_plan(small.plan())
    prepared = prepared_by(name, encoder, W4A6)
    before, after = encode(encoder, small.images(8)), encode(prepared, small.images(8))
    np.testing.assert_allclose(after, before, atol=1e-5)  # the same function in float32, features of unit length
    tokens = [small.search_form(each, small.images(8)).tokens for each in (encoder, prepared)]
    np.testing.assert_allclose(*tokens, atol=5e-5)  # tokens are of size 5
    kernels = (e.params.image.blocks.attention.key.kernel for e in (encoder, prepared))
    assert not np.array_equal(*kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PREPARING if name != "rotation"])
def test_a_preparing_method_keeps_what_a_plan_deletes(name):
    encoder = small.encoder("dinov2").with_plan(small.plan(delete_count=3))
    prepared = prepared_by(name, encoder, W4A6)
    np.testing.assert_allclose(encode(prepared, small.images(8)), encode(encoder, small.images(8)), atol=1e-5)


@pytest.mark.slow
def test_rotation_refuses_a_plan_that_deletes_by_largest_channel():
    encoder = small.encoder("dinov2").with_plan(small.plan(delete_count=3))
    with pytest.raises(UserError, match="search for a plan on the rotated encoder"):
        prepared_by("rotation", encoder, W4A6)


def test_rotation_refuses_a_norm_between_values_and_what_reads_them():
    with pytest.raises(UserError, match="no rotation of values passes a norm"):
        prepared_by("rotation", small.encoder("inner norms"), W4A6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("clipping", "gptq", "bias_correction", "noisyquant")]
)
def test_a_method_for_outlying_channels_lowers_the_error_where_there_are_some(name):
    encoder, images = small.encoder("dinov2"), small.images(32)
    scheme = Scheme(8, 4) if name != "awq" else Scheme(3, activations="float")
    reference = encode(encoder, images)
    plain, better = (
        float(jnp.square(encode(quantize(encoder, images, s), images) - reference).sum())
        for s in (scheme, dataclasses.replace(scheme, method=name))
    )
    assert better < 0.9 * plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clipping", "gptq"])
def test_a_rounding_method_lowers_the_squared_error_of_the_products(name):
    encoder = small.encoder("clip")
    blocks, seen = encoder.params.image.blocks, observed(encoder, batches(), ("moments",))
    moments = seen.moments
    scheme = Scheme(3)
    errors = []
    for rounder in (round_to_nearest(scheme), METHODS[name].round(encoder, seen, scheme)):
        rounded = quantize_kernels(blocks, scheme, rounder)
        total = 0.0
        for site in SITES:
            difference = site_matrix(rounded, site) - site_matrix(blocks, site)
            weighting = (
                moments[site] if name == "gptq" else jnp.broadcast_to(jnp.eye(difference.shape[1]), moments[site].shape)
            )
            total += float(jnp.einsum("lcm,lcd,ldm->", difference, weighting, difference))
        errors.append(total)
    assert errors[1] < 0.95 * errors[0]


def test_least_error_scale_is_the_best_of_a_brute_force_search():
    kernel = np.random.default_rng(3).standard_t(3, (2, 16, 5)).astype(np.float32)
    found = np.asarray(clipping.least_error_scale(jnp.asarray(kernel), 4, (1,)))
    for block in range(2):
        for column in range(5):
            weights = kernel[block, :, column]
            scales = np.abs(weights).max() / 7 * np.array(clipping.SHARES)
            errors = [np.square(np.clip(np.round(weights / s), -7, 7) * s - weights).sum() for s in scales]
            chosen = np.square(
                np.clip(np.round(weights / found[block, 0, column]), -7, 7) * found[block, 0, column] - weights
            ).sum()
            assert chosen <= min(errors) * (1 + 1e-4)  # float32 beside float64


def test_importance_factors_by_hand():
    # means 1, 4, 16 at beta 1/2: 1, 2, 4, over sqrt(4 * 1) = 2
    np.testing.assert_allclose(importance_factors(jnp.array([1.0, 4.0, 16.0]), 0.5), [0.5, 1.0, 2.0], rtol=1e-6)


def test_reparameterised_channels_share_one_range():
    lower, upper = jnp.array([-1.0, 2.0, -3.0]), jnp.array([1.0, 4.0, 11.0])
    for symmetric in (True, False):
        factor, shift = reparameterization(lower, upper, symmetric)
        ends = np.stack([lower / factor - shift, upper / factor - shift])
        np.testing.assert_allclose(ends, np.broadcast_to(ends[:, :1], ends.shape), atol=1e-6)
        np.testing.assert_allclose(ends[1] - ends[0], 6.0, rtol=1e-6)  # widths 2, 2 and 14
        if symmetric:
            np.testing.assert_allclose(ends.sum(axis=0), 0.0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PREPARING if name != "rotation"])
def test_a_channel_next_to_zero_is_not_enlarged_beyond_a_step(name):
    encoder = small.encoder("siglip")
    blocks = encoder.params.image.blocks
    norm = jax.tree.map(lambda leaf: leaf.at[:, 5].multiply(1e-6), blocks.norm1)
    encoder = folding.with_blocks(encoder, blocks.replace(norm1=norm))
    prepared = prepared_by(name, encoder, Scheme(4, 4, "token"))
    enlarged = np.asarray(prepared.params.image.blocks.norm1.scale / norm.scale)
    # a channel counts for a seventh of the median one at least; weights differ by less than 5. Unbounded: 1e4 and more
    assert (enlarged[:, 5] < 7 * 5 * np.median(enlarged, axis=1)).all()
    np.testing.assert_allclose(folding.at_least_a_step(jnp.array([0.0, 7.0, 14.0, 0.5, 70.0]), 4), [1, 7, 14, 1, 70])


def test_sampled_tokens_stand_everywhere_in_an_image():
    rows = sampled_rows(64 * 64)  # an even stride of 8 would see 8 of the 64 positions
    assert len(np.unique(rows)) == 512 and len(np.unique(rows % 64)) > 60
    np.testing.assert_array_equal(sampled_rows(100), np.arange(100))


@pytest.mark.slow
def test_what_several_methods_need_is_gathered_in_one_pass_over_pictures_that_come_once(monkeypatch):
    passes, gathered = [], []
    encode_batch = gather._batch

    def noted(*arguments, **named):
        gathered.append({name for name, _ in named["wanted"]})
        return encode_batch(*arguments, **named)

    def stream():
        passes.append(1)
        yield from batches()

    monkeypatch.setattr(gather, "_batch", noted)
    encoder, scheme = small.encoder("siglip"), Scheme(4, 6, method="gptq+noisyquant")
    once = quantize(encoder, stream(), scheme)
    assert len(passes) == 1 and gathered == [{"moments", "tokens", "grids"}] * len(batches())
    whole = quantize(encoder, batches(), scheme)
    assert all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (once, whole)), strict=True))


def test_rotations_are_orthogonal_and_keep_means():
    matrix = rotation.rotation_that_keeps_means(12, np.random.default_rng(0))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(12), atol=1e-12)
    np.testing.assert_allclose(matrix @ np.ones(12), 1.0, atol=1e-12)
    np.testing.assert_allclose(rotation.hadamard(8) @ rotation.hadamard(8).T, np.eye(8), atol=1e-12)


@pytest.mark.slow
def test_channel_extremes_see_every_token_that_is_there():
    encoder = small.encoder("dinov2")
    found = observed(encoder, batches(), ("extremes",)).extremes
    inputs = small.search_form(encoder, small.images(), ("fc2",)).collected["fc2"]
    np.testing.assert_allclose(found["fc2"][:, 0], np.asarray(inputs).min(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["fc2"][:, 1], np.asarray(inputs).max(axis=(1, 2)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dinov2", "no biases"])
def test_bias_correction_brings_the_mean_of_a_product_back(family):
    encoder, images = small.encoder(family), small.images(24)
    plain = quantize(encoder, images, Scheme(4, 4))
    corrected = quantize(encoder, images, Scheme(4, 4, method="bias_correction"))
    block, means = 0, []
    for each in (encoder, plain, corrected):
        keys = small.search_form(each, images, ("key",)).collected["key"][block]
        means.append(np.asarray(keys).mean(axis=(0, 1)))
    # block 0 gets the same inputs in float and quantised, so its keys' means must agree to rounding
    np.testing.assert_allclose(means[2], means[0], atol=2e-5)
    assert np.abs(means[1] - means[0]).max() > 1e-3


@pytest.mark.slow
def test_noise_is_added_before_rounding_and_taken_back(monkeypatch):
    monkeypatch.setattr(noisyquant, "AMPLITUDES", (0.5,))
    encoder, images = small.encoder("clip"), small.images(24)
    noisy = quantize(encoder, images, Scheme(8, 3, method="noisyquant"))
    blocks = noisy.params.image.blocks
    noise = blocks.grids.fc2.offset
    assert bool((jnp.abs(noise) > 0).any())
    # by hand, one token through fc2 of block 2: y = scale * wscale * (round((x + n) / scale) . W) + b - n . W
    layer, scale = blocks.mlp.fc2, blocks.grids.fc2.scale[2]
    inputs = np.random.default_rng(0).uniform(-0.1, 0.5, 40).astype(np.float32)
    weight = np.asarray(layer.kernel.dequantize()[2], np.float64)
    rounded = np.clip(np.round((inputs + np.asarray(noise[2])) / scale), -3, 3) * np.float64(scale)
    original = np.asarray(encoder.params.image.blocks.mlp.fc2.bias[2], np.float64)
    expected = rounded @ weight + original - np.asarray(noise[2], np.float64) @ weight
    block = jax.tree.map(lambda leaf: leaf[2], blocks)
    (found,) = dense(
        jnp.asarray(inputs)[None, None], (block.mlp.fc2,), "fc2", Run(noisy.spec.image.blocks, noisy.scheme), block.grids.fc2
    )  # fmt: skip
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)  # float32 beside float64


def test_methods_are_named_in_order_and_checked():
    assert [method.name for method in methods_of("smoothquant+gptq")] == ["smoothquant", "gptq"]
    assert methods_of("rtn") == []
    for wrong, message in (
        ("magic", "unknown method magic"),
        ("awq+awq", "twice"),
        ("gptq+clipping", "only one method"),
    ):
        with pytest.raises(UserError, match=message):
            methods_of(wrong)
    with pytest.raises(UserError, match="needs calibration images"):
        quantize(small.encoder(), None, Scheme(activations="token", method="gptq"))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_with_registers_rules_and_zero_points(name):
    symmetric = name in ("ptq4vit", "fima_q")  # their scales have no zero points
    scheme = Scheme(
        6,
        6,
        symmetric=symmetric,
        method=name,
        rules=(Rule(("fc2",), (1,), quantized=False), Rule(("qkv",), None, 8, 8)),
    )
    encoder = small.encoder("clip").with_plan(small.plan())
    images = small.images(24)
    quantized = quantize(encoder, images, scheme)
    cosine = jnp.sum(encode(quantized, images) * encode(encoder, images), axis=-1)
    assert float(cosine.min()) > 0.95  # 6 bits; unrelated features are below 0.5


@pytest.mark.slow
def test_one_block_alone_runs_as_it_does_in_the_stack():
    encoder = small.encoder("dinov2").with_plan(small.plan(delete_count=2))
    spec = encoder.spec.image
    state = by_block.entering(encoder, small.images(4))
    alone = dataclasses.replace(spec.blocks, num_blocks=1)
    blocks = encoder.params.image.blocks
    whole = run_blocks(blocks, state[0], Run(spec.blocks, None, spec.protected), plan=encoder.plan)
    for block in range(3):
        output = run_blocks(
            segment(blocks, block, block + 1, None), state[0], Run(alone, None, spec.protected),
            plan=by_block.plan_of_block(encoder.plan, block), present=state[1],
        )  # fmt: skip
        state = output.hidden, output.present
    np.testing.assert_allclose(state[0], whole.hidden, atol=1e-5)
    np.testing.assert_array_equal(state[1], whole.present)
