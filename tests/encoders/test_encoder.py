"""The `Encoder` pytree and the verbs that users call."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.encoders.encoder import Encoder, encode, encode_image, encode_text, normalize
from regcache_jax.encoders.pooling import pool
from regcache_jax.quantization.quantize import quantize

fast_encode_image = jax.jit(encode_image)


def test_features_have_unit_length_and_an_all_zero_feature_stays_zero():
    features = jnp.asarray([[3.0, 4.0], [0.0, 0.0]], jnp.bfloat16)
    unit = normalize(features)
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [True, False])
def test_features_are_normalised_where_the_task_wants_it(wanted):
    encoder = small.encoder("no biases")
    encoder = encoder.replace(spec=dataclasses.replace(encoder.spec, normalize=wanted))
    images = small.images(2)
    raw = jax.jit(lambda encoder, images: encode(encoder, images).features)(encoder, images)
    np.testing.assert_allclose(
        fast_encode_image(encoder, images), normalize(raw) if wanted else raw, rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_a_lone_image_tower_has_no_text_to_encode():
    with pytest.raises(UserError, match="dinov2 has no text tower"):
        encode_text(small.encoder("dinov2"), jnp.zeros((1, 6), jnp.int32))


@pytest.mark.slow
def test_an_encoder_is_a_pytree_of_its_arrays():
    encoder = quantize(small.encoder("clip"), small.images(2), Scheme(), small.random_plan(start=1))
    leaves, tree = jax.tree.flatten(encoder)
    again = jax.tree.unflatten(tree, leaves)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert (again.spec, again.scheme, again.schedule) == (encoder.spec, encoder.scheme, encoder.schedule)
    assert isinstance(again, Encoder)


@pytest.mark.slow
def test_taking_the_plan_away_gives_the_encoder_back():
    encoder = small.encoder("siglip")
    planned = encoder.with_plan(small.random_plan(start=1, delete_block=2, delete_count=3))
    assert planned.schedule.delete_count == 3
    bare = planned.with_plan(None)
    assert bare.plan is None and bare.schedule is None
    images = small.images(2)
    np.testing.assert_array_equal(fast_encode_image(bare, images), fast_encode_image(encoder, images))
    assert np.abs(fast_encode_image(planned, images) - fast_encode_image(encoder, images)).max() > 1e-3


@pytest.mark.slow
def test_a_plan_s_rows_and_copies_are_data_its_block_numbers_are_not():
    encoder, images = small.encoder("siglip"), small.images(2)
    run = jax.jit(lambda encoder, images: encode_image(encoder, images))
    for seed, copies in ((0, 1.0), (1, 9.0)):
        run(encoder.with_plan(small.random_plan(seed, copies=copies, start=1, stop=3)), images)
    assert run._cache_size() == 1
    run(encoder.with_plan(small.random_plan(0, start=1, stop=2)), images)
    assert run._cache_size() == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", small.KINDS)
def test_padding_to_a_tile_changes_only_the_order_of_sums(kind):
    encoder, images = small.encoder(kind).with_plan(small.random_plan(start=1, copies=3.0)), small.images(2)
    run = jax.jit(lambda encoder, images, tile: encode(encoder, images, tile=tile).features, static_argnames="tile")
    np.testing.assert_allclose(run(encoder, images, tile=8), run(encoder, images, tile=None), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_bfloat16_reaches_every_float_weight_and_nothing_that_integers_need():
    encoder = quantize(small.encoder("dinov2"), small.images(2), Scheme(), small.random_plan(start=1)).astype(
        jnp.bfloat16
    )
    assert encoder.dtype == jnp.bfloat16
    found = {str(leaf.dtype) for leaf in jax.tree.leaves(encoder.plan.key)}
    blocks = encoder.params.image.blocks
    for layer in (layer for site in SITES for layer in blocks.layers(site).values()):
        assert (layer.kernel.values.dtype, layer.kernel.scale.dtype) == (jnp.int8, jnp.float32)
    assert {str(scale.dtype) for scale in (blocks.grids.of(site).scale for site in SITES)} | found == {"float32"}
    for leaf in (blocks.norm1.scale, blocks.layer_scale1, encoder.params.image.class_token):
        assert leaf.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("kind", small.KINDS)
def test_bfloat16_features_point_where_float32_features_do(kind):
    encoder, images = small.encoder(kind), small.images(4)
    cosine = jnp.sum(
        normalize(fast_encode_image(encoder, images))
        * normalize(fast_encode_image(encoder.astype(jnp.bfloat16), images)),
        axis=-1,
    )
    assert float(cosine.min()) > 0.99  # three blocks of eight-bit mantissas, errors of one in 256 each


@pytest.mark.parametrize("kind", ["no biases", "siglip"])
def test_pooling_is_blind_to_tokens_that_are_not_there(kind):
    encoder = small.encoder(kind)
    params, spec = encoder.params.image, encoder.spec.image
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 24)), jnp.float32)
    present = jnp.broadcast_to(jnp.arange(16) != 5, (2, 16))
    loud = hidden.at[:, 5].set(1e3)
    run = jax.jit(lambda hidden, present: pool(params, hidden, spec, present)[0])
    np.testing.assert_array_equal(run(loud, present), run(hidden, present))
    fewer = jnp.delete(hidden, 5, axis=1)
    np.testing.assert_allclose(run(hidden, present), run(fewer, None), rtol=1e-5, atol=1e-5)  # sums in another order
