"""Norms of every kind: their formulas, the keys that registers are made of, folders, deletion, and what follows behind a trunk."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.plan import Schedule
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Norm
from regcache_jax.core.spec import BlockSpec, EncoderSpec
from regcache_jax.encoders.encoder import encode
from regcache_jax.encoders.norms import apply_norm, norm_heads
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.serving import TokenRegister, serve_blocks, serve_tokens, token_rows
from regcache_jax.encoders.vision import embed_patches
from regcache_jax.models.folder import load, save
from regcache_jax.quantization.quantize import quantize
from regcache_jax.tpu.peer import Peer

OTHER_NORMS = ("rms", "inner norms")


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def test_an_rms_norm_divides_by_the_root_of_the_mean_square_and_subtracts_nothing():
    spec, hidden, scale = dataclasses.replace(small.BLOCKS, norm="rms"), drawn(2, 3, 24) + 5.0, drawn(24, seed=1)
    wanted = hidden / np.sqrt(np.mean(np.square(hidden), axis=-1, keepdims=True) + spec.norm_eps) * scale
    np.testing.assert_allclose(apply_norm(hidden, Norm(scale), spec), wanted, rtol=1e-5)


@pytest.mark.parametrize("two_passes", [False, True])
def test_a_layer_norm_is_the_same_in_one_pass_and_in_two(two_passes):
    spec, hidden, norm = small.BLOCKS, drawn(2, 3, 24) + 5.0, Norm(drawn(24, seed=1), drawn(24, seed=2))
    exact = np.asarray(hidden, np.float64)
    centred = exact - exact.mean(axis=-1, keepdims=True)
    wanted = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + spec.norm_eps) * norm.scale + norm.bias
    np.testing.assert_allclose(apply_norm(hidden, norm, spec, two_passes=two_passes), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_queries_and_keys_are_normed_a_head_at_a_time_or_all_at_once(kind):
    heads, scale = drawn(2, 5, 3, 8), 1.0 + drawn(3, 8, seed=1)
    spec = dataclasses.replace(small.BLOCKS, norm=kind)
    by_head = norm_heads(heads, Norm(scale[0]), dataclasses.replace(spec, qk_norm="head"))
    at_once = norm_heads(heads, Norm(scale), dataclasses.replace(spec, qk_norm="width"))
    for head in range(3):
        np.testing.assert_array_equal(by_head[:, :, head], apply_norm(heads[:, :, head], Norm(scale[0]), spec))
    whole = apply_norm(heads.reshape(2, 5, 24), Norm(scale.reshape(24)), spec)
    np.testing.assert_array_equal(at_once.reshape(2, 5, 24), whole)
    assert norm_heads(heads, None, spec) is heads


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_NORMS)
def test_the_keys_of_a_cached_register_are_those_that_its_token_has_in_the_blocks(kind):
    """A hidden state that runs along, or its keys and values cached: attention sees the same, so keys are normed as the model does."""
    encoder, schedule = small.encoder(kind), Schedule(1, 3, 0, 0)
    image, blocks = encoder.spec.image, encoder.params.image.blocks
    hidden = embed_patches(encoder.params.image, small.images(2), image)
    register = TokenRegister(drawn(2, 24, seed=3), jnp.float32(3.0))
    run = Run(image.blocks, protected=image.protected, grid=(image.grid, image.grid))
    along = serve_tokens(blocks, hidden, run, schedule, register).hidden
    key, value = token_rows(blocks, register, image.blocks, schedule)
    plan = small.random_plan(0, 2, copies=3.0, start=1).replace(key=key, value=value)
    cached = serve_blocks(blocks, hidden, run, schedule, plan.rows()).hidden
    np.testing.assert_allclose(cached, along, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*OTHER_NORMS, "further", "probe"])
@pytest.mark.parametrize("prepared", [False, True])
def test_the_serving_form_gives_the_features_of_the_search_form_with_registers_and_deletion(kind, prepared):
    encoder = small.encoder(kind).with_plan(small.plan(delete_count=3))
    wanted = small.search_form(encoder, small.images(2)).features
    found = encode(encoder.prepared() if prepared else encoder, small.images(2)).features
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [Scheme(activations="token", method="repq_vit"), Scheme(8, 8, symmetric=False)])
def test_what_methods_and_zero_points_leave_in_layers_and_norms_without_biases_is_kept_in_a_folder(tmp_path, scheme):
    encoder = quantize(small.encoder("rms"), small.images(), scheme)
    blocks = encoder.params.image.blocks
    assert (blocks.norm1.bias is not None) == (scheme.method == "repq_vit")
    assert blocks.attention.key.bias is not None
    save(tmp_path / "model", encoder)
    found = load(tmp_path / "model").encoder
    jax.tree.map(np.testing.assert_array_equal, found.params, encoder.params)


@pytest.mark.slow
def test_int8_stays_near_the_float_encoder_of_every_kind_of_norm():
    for kind in OTHER_NORMS:
        exact = small.encoder(kind)
        rounded = quantize(exact, small.images(), Scheme())
        one, other = (encode(each, small.images(8)).features for each in (exact, rounded))
        cosine = jnp.sum(one * other, -1) / jnp.linalg.norm(one, axis=-1) / jnp.linalg.norm(other, axis=-1)
        assert float(cosine.min()) > 0.99, kind


@pytest.mark.parametrize("kind", OTHER_NORMS)
def test_the_peer_that_a_tpu_is_asked_about_has_the_same_norms(kind):
    spec = small.SPECS[kind].image
    with jax.numpy_dtype_promotion("standard"):  # Flax's norms mix bfloat16 and float32
        shapes = jax.eval_shape(Peer(spec).init, jax.random.key(0), small.images(1))["params"]
    norms = [name for name in shapes if name.startswith("RMSNorm" if spec.blocks.norm == "rms" else "LayerNorm")]
    a_block = 4 + 2 * spec.blocks.inner_norms  # before both layers, of queries and keys, inside both layers
    assert len(norms) == a_block * spec.blocks.num_blocks + spec.patch_norm + spec.final_norm
    attention = shapes["MultiHeadDotProductAttention_0"]
    assert ("bias" in attention["out"]) == spec.blocks.bias


@pytest.mark.slow
def test_a_spec_of_version_0_1_0_has_none_of_it_in_its_json():
    json = EncoderSpec("small", "clip", small.VIT, small.PICTURE).to_json()
    added = {"norm", "qk_norm", "bias", "inner_norms", "patch_norm", "further"}
    assert added.isdisjoint(json["image"]) and added.isdisjoint(json["image"]["blocks"])
    for kind in (*OTHER_NORMS, "further"):
        spec = small.SPECS[kind]
        assert EncoderSpec.from_json(spec.to_json()) == spec and isinstance(spec.image.blocks, BlockSpec)
