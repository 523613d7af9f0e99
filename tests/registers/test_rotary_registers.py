"""Registers, deletion and quantisation where positions are rotary: what has a place keeps it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.plan import Schedule, make_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import Rotary
from regcache_jax.encoders.encoder import encode
from regcache_jax.encoders.norms import layer_norm
from regcache_jax.encoders.rounding import Run, linear
from regcache_jax.encoders.serving import TokenRegister, serve_blocks, serve_tokens, token_rows
from regcache_jax.encoders.vision import embed_patches, image_features, serve_image
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.candidates import find_candidates, registers_from, without_position
from regcache_jax.studies.grid import features_of, label_free_error
from regcache_jax.studies.planted import plant, planted_spec
from regcache_jax.studies.recovery import find_planted


@pytest.mark.slow
def test_keys_are_as_attention_sees_them_and_lose_their_position_when_asked():
    encoder = small.encoder("dinov3")
    seen = small.search_form(encoder, small.images(2), names=("key", "hidden")).collected
    blocks, spec = encoder.params.image.blocks, encoder.spec.image
    block = jax.tree.map(lambda leaf: leaf[1], blocks)
    plain = linear(layer_norm(seen["hidden"][1], block.norm1, spec.blocks.norm_eps), block.attention.key)
    np.testing.assert_allclose(without_position(seen["key"], spec)[1], plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        seen["key"][1][:, : spec.num_protected], plain[:, : spec.num_protected], rtol=1e-5, atol=1e-5
    )
    assert float(jnp.abs(seen["key"][1] - plain).max()) > 0.1


@pytest.mark.slow
def test_pictures_of_any_shape_run_in_both_forms_and_a_deleted_token_takes_its_place_along():
    encoder = small.encoder("dinov3")
    tower, spec = encoder.params.image, encoder.spec.image
    wide = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 12, 24, 3)).astype(np.float32))
    plan = small.plan(delete_count=5)
    searched = jax.jit(lambda: image_features(tower, wide, spec, plan=plan))()
    serve = functools.partial(serve_image, tower, wide, spec, plan.schedule(), registers=plan.rows())
    for tile in (None, 8):
        served = jax.jit(functools.partial(serve, tile=tile))()
        np.testing.assert_allclose(served.features, searched.features, rtol=1e-5, atol=1e-5)
        assert served.tokens.shape[1] == spec.num_protected + 3 * 6 - 5


@pytest.mark.slow
def test_patches_that_are_no_square_must_say_their_rows_and_columns():
    encoder = small.encoder("dinov3")
    tower, spec = encoder.params.image, encoder.spec.image
    hidden = embed_patches(tower, small.images(1)[:, :12], spec)
    with pytest.raises(ValueError, match="12 patches are no grid of 3 x 3"):
        serve_blocks(tower.blocks, hidden, Run(spec.blocks, None, spec.protected), Schedule(0, 0, 0, 0), None)


@pytest.mark.slow
def test_a_token_register_has_no_place_and_its_rows_say_the_same():
    encoder = small.encoder("dinov3")
    tower, spec = encoder.params.image, encoder.spec.image
    hidden, run = embed_patches(tower, small.images(2), spec), Run(spec.blocks, None, spec.protected)
    register = TokenRegister(hidden[0, 5:7], jnp.float32(2.0))
    schedule = Schedule(1, 3, 2, 4)
    as_token = jax.jit(lambda: serve_tokens(tower.blocks, hidden, run, schedule, register))().hidden
    rows = jax.jit(lambda: token_rows(tower.blocks, register, spec.blocks, schedule))()
    plan = make_plan(*rows, copies=2.0, start=1, stop=3, delete_block=2, delete_count=4)
    as_rows = jax.jit(lambda: serve_blocks(tower.blocks, hidden, run, schedule, plan.rows()))().hidden
    np.testing.assert_allclose(as_rows, as_token, rtol=1e-4, atol=1e-5)  # float32, sums in another order


@pytest.fixture(scope="module")
def planted():
    return {
        kinds: plant(kinds, spec=planted_spec(rotary=Rotary(100.0), trained_registers=4), num_images=16)
        for kinds in (("patch sinks",), ())
    }


@pytest.mark.slow
def test_sinks_of_an_encoder_with_rotary_positions_are_found(planted):
    found = find_planted(planted["patch sinks",])
    assert found.block == planted["patch sinks",].block
    assert found.precision > 0.95 and found.recall > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("position", ["source", "none"])
def test_registers_of_either_rule_take_the_sinks_away_and_save_the_int8_features(planted, position):
    sinks, plain = planted["patch sinks",], planted[()].encoder
    images, scheme = jnp.asarray(sinks.images), Scheme(8, 8)
    candidates = find_candidates(sinks.encoder, sinks.images, [sinks.block + 1], count=16, position=position)
    key, value = registers_from(candidates, 0)[:2]
    plan = make_plan(key, value, copies=15.0, start=sinks.block, delete_block=sinks.block, delete_count=3)
    reference = features_of(plain, sinks.images, 16)

    def error(encoder, plan=None):
        return label_free_error(features_of(quantize(encoder, images, scheme, plan), sinks.images, 16), reference)

    assert error(sinks.encoder) > 5 * error(plain)
    assert error(sinks.encoder, plan.prefix_only()) < 1.1 * error(plain)
    deleting = quantize(sinks.encoder, images, scheme, plan)
    assert encode(deleting, images[:2]).tokens.shape[1] == sinks.encoder.spec.image.num_tokens - 3
