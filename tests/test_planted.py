import jax.numpy as jnp
import numpy as np
import pytest

import regcache_jax as rc
from regcache_jax.registers.candidates import find_candidates
from regcache_jax.registers.inspect import find_sinks
from regcache_jax.registers.planted import KINDS, plant, planted_spec
from regcache_jax.registers.rivals import features_of, label_free_error

QUICK = rc.SearchConfig(copies=(6.0, 15.0), delete_counts=(0,), back=1, registers=(1,), rounds=1, chunk=16)
VIT_B16 = planted_spec(768, 12, 12, 224, 16)


@pytest.fixture(scope="module")
def sinks():
    return plant(["patch sinks"], num_images=32)


def test_planted_sinks_change_no_feature_of_the_float_encoder(sinks):
    without = plant([], num_images=32)
    np.testing.assert_array_equal(sinks.images, without.images)
    with_sinks, plain = (features_of(encoder, without.images, 32) for encoder in (sinks.encoder, without.encoder))
    np.testing.assert_allclose(with_sinks, plain, atol=1e-6)  # unit features; sinks are 30 logits below all others


@pytest.mark.parametrize(
    "kinds", [(), *((kind,) for kind in KINDS), KINDS], ids=lambda kinds: " + ".join(kinds) or "none"
)
def test_each_planted_kind_gets_its_own_verdict_and_a_mixture_gets_all(kinds):
    planted = plant(kinds, num_images=16)
    verdict = rc.judge(rc.inspect(planted.encoder, planted.images))
    assert verdict.kinds == (kinds or ("none",))


def check_recovery(planted):
    """Block, tokens and direction as `inspect` and `find_candidates` see them, against what was planted."""
    profile = rc.inspect(planted.encoder, planted.images, batch_size=16)
    assert profile.sensitive_block == planted.block
    found = find_sinks(planted.encoder, planted.images, batch_size=16)[planted.block + 1]
    both = (found & planted.tokens).sum()
    assert both / found.sum() > 0.95 and both / planted.tokens.sum() > 0.95
    assert abs(profile.sink_direction[planted.block + 1] @ planted.direction) > 0.99
    count = int(planted.tokens.sum())
    candidates = find_candidates(planted.encoder, planted.images, [planted.block], count=count, batch_size=16)
    marks = np.asarray(candidates.key)[0, :, planted.block, 0, 1]  # the planted head's key, which markers alone have
    assert (marks > 0.5 * marks.max()).mean() > 0.95


def check_restored(planted, config):
    """W8A8 with the found plan loses at most 5 % more than the same encoder without sinks, which loses far less than with."""
    plain = plant([], spec=planted.encoder.spec, num_images=len(planted.images))
    scheme = rc.Scheme(8, 8)
    result = rc.search(planted.encoder, planted.images, scheme, config)
    assert result.helps and result.sensitive_block == planted.block
    reference = features_of(plain.encoder, plain.images, 16)

    def error(encoder, plan=None):
        return label_free_error(
            rc.quantize(encoder, jnp.asarray(planted.images), scheme, plan), planted.images, reference
        )

    without_sinks = error(plain.encoder)
    assert error(planted.encoder) > 5 * without_sinks
    assert error(planted.encoder, result.plan) < 1.05 * without_sinks
    registered = planted.encoder.with_plan(result.plan.prefix_only())
    assert rc.inspect(registered, planted.images, batch_size=16).sinks_per_image.sum() == 0


def test_block_tokens_and_direction_of_planted_sinks_are_recovered(sinks):
    check_recovery(sinks)


@pytest.mark.slow
def test_the_plan_restores_the_features_of_the_encoder_without_sinks(sinks):
    check_restored(sinks, QUICK)


@pytest.mark.slow
def test_the_same_holds_at_the_shape_of_vit_b16():
    planted = plant(["patch sinks"], spec=VIT_B16, num_images=8)
    check_recovery(planted)
    check_restored(
        planted, rc.SearchConfig(copies=(15.0,), delete_counts=(0,), back=0, registers=(1,), rounds=0, chunk=8)
    )


def test_sensitivity_is_largest_at_the_second_mlp_layer_of_the_planted_block(sinks):
    errors = rc.sensitivity(sinks.encoder, sinks.images[:8], rc.Scheme(8, 8))
    block, site = np.unravel_index(np.argmax(errors), errors.shape)
    assert (int(block), int(site)) == (sinks.block, 3)  # sites: qkv, out, fc1, fc2


def test_unknown_kinds_and_missing_trained_registers_are_refused():
    with pytest.raises(rc.UserError, match="unknown kinds of outliers gremlins"):
        plant(["gremlins"])
    with pytest.raises(rc.UserError, match="needs an encoder with trained registers"):
        plant(["trained-register outlier"], spec=planted_spec())
