"""Patch features at a tap: those of the block asked for, of float and quantised encoders, with plans."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import regcache_jax as rc
from regcache_jax.core.scheme import Rule, Scheme
from regcache_jax.core.spec import EncoderSpec, Tap
from regcache_jax.encoders.encoder import encode
from regcache_jax.encoders.norms import layer_norm
from regcache_jax.encoders.outputs import patch_tokens
from regcache_jax.encoders.taps import at_tap, encode_patches
from regcache_jax.models.folder import load, save

IMAGES = small.images(2)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # the same products, added up in other programs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_a_tap_gives_what_enters_the_next_block_with_or_without_norm_and_class_token(kind):
    encoder = small.encoder(kind)
    image = encoder.spec.image
    entering = small.search_form(encoder, IMAGES, ("hidden",)).collected["hidden"][2]
    patches = entering[:, image.num_protected :]
    close(encode_patches(encoder, IMAGES, Tap(1, normed=False)), patches)
    close(encode_patches(encoder, IMAGES, Tap(-2, normed=False)), patches)
    normed = layer_norm(entering, encoder.params.image.final_norm, image.blocks.norm_eps)
    close(encode_patches(encoder, IMAGES, Tap(1)), normed[:, image.num_protected :])
    if image.class_token:
        with_class = encode_patches(encoder, IMAGES, Tap(1, class_token=True))
        close(with_class, jnp.concatenate([normed[:, :1], normed[:, image.num_protected :]], axis=1))


@pytest.mark.slow
def test_without_a_tap_the_patches_are_the_encoders_own_and_jit_agrees():
    encoder = small.encoder("siglip")
    own = encode_patches(encoder, IMAGES)
    close(own, patch_tokens(encode(encoder, IMAGES), encoder.spec.image))
    close(encode_patches(encoder, IMAGES, Tap()), own)
    close(jax.jit(lambda encoder, images: rc.encode_patches(encoder, images, {"block": -1}))(encoder, IMAGES), own)


@pytest.mark.slow
@pytest.mark.parametrize("rules", [(), (Rule(("fc1",), (0, 2), quantized=False),)])
def test_a_quantised_encoder_with_a_plan_is_tapped_like_a_float_one(rules):
    scheme = Scheme(rules=rules)
    plan = small.plan(delete_count=3)
    encoder = rc.quantize(small.encoder("dinov2").with_plan(plan), IMAGES, scheme)
    whole = small.search_form(encoder, IMAGES, ("hidden", "present"))
    entering, present = whole.collected["hidden"][2], whole.collected["present"][2]
    first = encoder.spec.image.num_protected
    tapped = jax.jit(lambda encoder, images: encode_patches(encoder, images, Tap(1, normed=False)))
    found, there = np.asarray(tapped(encoder, IMAGES)), np.asarray(present)[:, first:]
    assert there.sum() == there.size - 2 * 3  # three of each picture are gone, and filled in
    assert found.shape[1] == encoder.spec.image.grid**2 and np.isfinite(found).all()
    close(found[there], np.asarray(entering)[:, first:][there])


@pytest.mark.slow
def test_a_plan_that_acts_behind_the_tap_changes_nothing_before_it():
    encoder = small.encoder()
    planned = encoder.with_plan(small.random_plan(start=2, delete_block=2, delete_count=3))
    close(encode_patches(planned, IMAGES, Tap(1)), encode_patches(encoder, IMAGES, Tap(1)))


@pytest.mark.slow
def test_an_encoder_that_ends_at_a_tap_is_kept_as_any_other(tmp_path):
    encoder = rc.quantize(
        small.encoder("siglip with text"), IMAGES, Scheme(rules=(Rule(("fc1",), (0,), quantized=False),))
    )
    ended = at_tap(encoder, Tap(-2, normed=False))
    again = load(save(tmp_path / "tower", ended)).encoder
    assert again.spec == ended.spec and again.spec.text is None
    np.testing.assert_array_equal(encode_patches(again, IMAGES), encode_patches(ended, IMAGES))
    close(encode_patches(ended, IMAGES), encode_patches(encoder, IMAGES, Tap(-2, normed=False)))


@pytest.mark.slow
def test_where_nothing_is_pooled_the_mean_of_the_patches_stands_in():
    encoder = small.encoder("tower")
    close(encode(encoder, IMAGES).features, jnp.mean(encode_patches(encoder, IMAGES), axis=1))
    deleted = encoder.with_plan(small.plan(delete_count=2))
    output = small.search_form(deleted, IMAGES)
    there = np.asarray(output.present)[0, 1:]
    close(output.features[0], np.asarray(output.tokens)[0, 1:][there].mean(axis=0))


@pytest.mark.parametrize(
    ("kind", "tap", "message"),
    [
        ("clip", {"block": 3}, r"at a block 0\.\.2 \(-1: the last\), got 3"),
        ("clip", {"blok": 3}, "Tap has no blok; did you mean block"),
        ("tower", {}, "has no final norm"),
        ("siglip", {"class_token": True}, "has no class token to keep"),
        ("clip", 3, "expected a Tap or a dictionary"),
    ],
)
def test_a_tap_that_there_is_not_is_refused(kind, tap, message):
    with pytest.raises(rc.UserError, match=message):
        rc.encode_patches(small.encoder(kind), IMAGES, tap)


def test_specs_say_what_version_0_1_0_did_not_only_where_they_have_it():
    plain, tower = small.SPECS["clip"], small.SPECS["tower"]
    assert "final_norm" not in plain.to_json()["image"] and "num_classes" not in plain.to_json()
    assert tower.to_json()["image"]["final_norm"] is False
    for spec in (plain, tower, dataclasses.replace(plain, num_classes=5)):
        assert EncoderSpec.from_json(spec.to_json()) == spec
