"""The serving form against the search form: other rows, other programs, the same encoder."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import HALF, BlockSpec, EncoderSpec, ImageSpec, Preprocessing, Rotary
from regcache_jax.encoders.encoder import Encoder, init_params
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.serving import num_rows, repeat_last, serve_blocks
from regcache_jax.encoders.vision import embed_patches, image_features, serve_image
from regcache_jax.quantization.quantize import quantize

NUM_BLOCKS, HEADS, HEAD_DIM, PATCHES = 4, 2, 8, 9


def make_spec(class_token: bool, pooling: str, rotary: bool = False) -> EncoderSpec:
    blocks = BlockSpec(HEADS * HEAD_DIM, NUM_BLOCKS, HEADS, 40, "gelu", 1e-6, rotary=Rotary(100.0) if rotary else None)
    image = ImageSpec(14, 4, blocks, class_token, pooling, trained_registers=2 * class_token, position_table=not rotary)
    return EncoderSpec("small", "siglip", image, Preprocessing(14, "squash", "bicubic", 14, HALF, HALF))


@functools.cache
def small_encoder(class_token: bool, pooling: str, rotary: bool = False, scheme: Scheme | None = None) -> Encoder:
    spec = make_spec(class_token, pooling, rotary)
    params = jax.tree.map(np.asarray, init_params(spec, jax.random.key(0)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.1 * normal(rng, *leaf.shape)), params)
    encoder = Encoder(params, spec=spec)
    return encoder if scheme is None else quantize(encoder, images(16, seed=5), scheme)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def images(count: int, seed: int = 2) -> jax.Array:
    return jnp.asarray(normal(np.random.default_rng(seed), count, 14, 14, 3))


def rows(seed: int, registers: int = 1) -> jax.Array:
    """Keys and values of random registers."""
    return jnp.asarray(normal(np.random.default_rng(seed), 2, NUM_BLOCKS, registers, HEADS, HEAD_DIM))


@functools.partial(jax.jit, static_argnames=("spec", "scheme"))
def search_form(params, images, spec, plan=None, scheme=None):
    return image_features(params, images, spec, plan=plan, scheme=scheme)


@functools.partial(jax.jit, static_argnames=("spec", "schedule", "scheme", "tile"))
def serving_form(params, images, spec, schedule, plan, scheme=None, tile=None):
    return serve_image(params, images, spec, schedule, registers=plan.rows(), scheme=scheme, tile=tile)


@st.composite
def plans(draw: st.DrawFn) -> RegisterPlan:
    start = draw(st.integers(0, NUM_BLOCKS))
    registers = draw(st.integers(1, 2))
    copies = np.float32(draw(st.lists(st.floats(0.1, 30), min_size=HEADS, max_size=HEADS)))
    return make_plan(
        *rows(draw(st.integers(0, 99)), registers),
        copies=jnp.asarray(np.tile(copies, (NUM_BLOCKS, 1))),
        start=start,
        stop=draw(st.integers(start, NUM_BLOCKS)),
        delete_block=draw(st.integers(0, NUM_BLOCKS - 1)),
        delete_count=draw(st.integers(0, PATCHES - 1)),
        num_patches=PATCHES,
    )


ENCODERS = [(False, "mean"), (False, "map"), (True, "class"), (True, "mean"), (True, "class", True)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODERS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(plan=plans(), tile=st.sampled_from([None, 4]))
def test_the_serving_form_of_a_float_encoder_equals_the_search_form(kind, tile, plan):
    encoder = small_encoder(*kind)
    params, spec = encoder.params.image, encoder.spec.image
    searched = search_form(params, images(3), spec, plan)
    served = serving_form(params, images(3), spec, plan.schedule(), plan, tile=tile)
    # float32: the same sums over other numbers of rows, so in another order
    np.testing.assert_allclose(served.features, searched.features, rtol=1e-5, atol=1e-5)
    present = np.asarray(searched.present)
    kept = np.array([np.flatnonzero(row) for row in present])
    everything = np.broadcast_to(np.arange(present.shape[1]), present.shape)
    np.testing.assert_array_equal(everything if served.kept is None else served.kept, kept)
    tokens = np.take_along_axis(np.asarray(searched.tokens), kept[..., None], axis=1)
    np.testing.assert_allclose(served.tokens, tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["static", "token", "tensor", "group"])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(plan=plans(), kind=st.sampled_from([(False, "mean"), (True, "class"), (True, "class", True)]))
def test_the_serving_form_of_an_int8_encoder_stays_within_a_few_flipped_integers(kind, activations, plan):
    encoder = small_encoder(*kind, scheme=Scheme(activations=activations))
    params, spec = encoder.params.image, encoder.spec.image
    searched = search_form(params, images(3), spec, plan, encoder.scheme)
    served = serving_form(params, images(3), spec, plan.schedule(), plan, encoder.scheme, tile=8)
    # the integers are the same but where a float sum in another order crosses a rounding boundary: then one step of 1/127
    difference = np.abs(np.asarray(served.features) - np.asarray(searched.features))
    step = np.max(np.abs(searched.features)) / 127
    assert np.max(difference) <= step
    assert np.median(difference) <= 1e-4 * step + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("tile", [None, 8])
def test_registers_and_deletion_in_the_middle_blocks_agree_between_the_two_forms(tile):
    encoder = small_encoder(True, "class")
    params, spec = encoder.params.image, encoder.spec.image
    plan = make_plan(*rows(3), copies=4.5, start=1, stop=3, delete_block=2, delete_count=3)
    searched = search_form(params, images(2), spec, plan).features
    served = serving_form(params, images(2), spec, plan.schedule(), plan, tile=tile).features
    np.testing.assert_allclose(served, searched, rtol=1e-5, atol=1e-5)  # sums in another order


def test_rows_hold_tokens_and_registers_and_end_on_a_tile():
    assert [num_rows(196, 0, 8), num_rows(196, 1, 8), num_rows(200, 1, 8), num_rows(197, 3, None)] == [
        200,
        200,
        208,
        197,
    ]


@pytest.mark.slow
def test_padding_rows_leave_the_blocks_as_copies_of_the_last_token():
    encoder = small_encoder(False, "mean", scheme=Scheme(activations="tensor"))
    params, spec = encoder.params.image, encoder.spec.image
    hidden = embed_patches(params, images(2), spec)
    plan = make_plan(*rows(0), start=1)
    served = serve_blocks(params.blocks, hidden, Run(spec.blocks, encoder.scheme), plan.schedule(), plan.rows(), tile=8)
    assert served.rows.shape[1] == 16 and served.num_tokens == PATCHES
    np.testing.assert_array_equal(served.rows, repeat_last(served.hidden, 16))


@pytest.mark.slow
def test_padded_embedding_is_the_embedding_with_its_last_token_repeated():
    encoder = small_encoder(True, "class")
    params, spec = encoder.params.image, encoder.spec.image
    plain = embed_patches(params, images(2), spec)
    padded = embed_patches(params, images(2), spec, rows=16)
    np.testing.assert_allclose(padded, repeat_last(plain, 16), rtol=1e-6, atol=1e-6)  # one product of another height


def test_the_embedding_is_the_convolution_it_stands_for():
    encoder = small_encoder(True, "class")
    params, spec = encoder.params.image, encoder.spec.image
    kernel = params.patch_embedding.kernel
    patches = jax.lax.conv_general_dilated(
        images(2), kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    patches = patches.reshape(2, PATCHES, -1) + params.patch_embedding.bias + params.position_embedding[1:]
    tokens = embed_patches(params, images(2), spec)
    np.testing.assert_allclose(tokens[:, 3:], patches, rtol=1e-5, atol=1e-5)  # float32, sums in another order
    front = params.class_token + params.position_embedding[0]
    np.testing.assert_allclose(tokens[0, 0], front, rtol=1e-6)
    np.testing.assert_allclose(tokens[1, 1:3], params.registers, rtol=1e-6)


@pytest.mark.slow
def test_a_padding_row_with_an_enormous_logit_does_not_disturb_attention():
    """Without a register the repeated token's key is a token's own, so the largest logit is a real one."""
    encoder = small_encoder(False, "mean")
    params, spec = encoder.params.image, encoder.spec.image
    loud = images(2).at[:, 8:12, 8:12].mul(1e4)  # the last patch
    plan = make_plan(*jnp.zeros((2, NUM_BLOCKS, 1, HEADS, HEAD_DIM)), stop=0)
    searched = search_form(params, loud, spec)
    served = serving_form(params, loud, spec, plan.schedule(), plan, tile=8)
    assert bool(jnp.all(jnp.isfinite(served.features)))
    np.testing.assert_allclose(served.features, searched.features, rtol=1e-4, atol=1e-4)  # logits of 1e4 in float32
