import numpy as np
import pytest

import regcache_jax as rc
from regcache_jax.registers.candidates import find_candidates
from regcache_jax.studies.grid import features_of
from regcache_jax.studies.planted import KINDS, plant, planted_spec
from regcache_jax.studies.recovery import find_planted, restore_planted

QUICK = rc.SearchConfig(copies=(6.0, 15.0), delete_counts=(0,), back=1, registers=(1,), rounds=1, chunk=16)


@pytest.fixture(scope="module")
def sinks():
    return plant(["patch sinks"], num_images=32)


@pytest.mark.slow
def test_planted_sinks_change_no_feature_of_the_float_encoder(sinks):
    without = plant([], num_images=32)
    np.testing.assert_array_equal(sinks.images, without.images)
    with_sinks, plain = (features_of(encoder, without.images, 32) for encoder in (sinks.encoder, without.encoder))
    np.testing.assert_allclose(with_sinks, plain, atol=1e-6)  # unit features; sinks are 30 logits below all others


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [(), *((kind,) for kind in KINDS), KINDS], ids=lambda kinds: " + ".join(kinds) or "none"
)
def test_each_planted_kind_gets_its_own_verdict_and_a_mixture_gets_all(kinds):
    planted = plant(kinds, num_images=16)
    verdict = rc.judge(rc.inspect(planted.encoder, planted.images))
    assert verdict.kinds == (kinds or ("none",))


@pytest.mark.slow
def test_block_tokens_and_direction_of_planted_sinks_are_recovered(sinks):
    found = find_planted(sinks)
    assert found.block == sinks.block
    assert found.precision > 0.95 and found.recall > 0.95 and found.cosine > 0.99
    count = int(sinks.tokens.sum())
    candidates = find_candidates(sinks.encoder, sinks.images, [sinks.block], count=count, batch_size=16)
    marks = np.asarray(candidates.key)[0, :, sinks.block, 0, 1]  # the planted head's key, which markers alone have
    assert (marks > 0.5 * marks.max()).mean() > 0.95


@pytest.mark.slow
def test_the_plan_restores_the_features_of_the_encoder_without_sinks(sinks):
    """At most 5 % more error than without sinks, which is far less than with. (benchmarks/planted.py: at ViT-B/16's size.)"""
    restored = restore_planted(sinks, rc.Scheme(8, 8), QUICK)
    assert restored.result.helps and restored.result.sensitive_block == sinks.block
    assert restored.with_sinks > 5 * restored.without_sinks
    assert restored.with_plan < 1.05 * restored.without_sinks
    assert restored.sinks_left == 0


@pytest.mark.slow
def test_sensitivity_is_largest_at_the_second_mlp_layer_of_the_planted_block(sinks):
    errors = rc.sensitivity(sinks.encoder, sinks.images[:8], rc.Scheme(8, 8))
    block, site = np.unravel_index(np.argmax(errors), errors.shape)
    assert (int(block), int(site)) == (sinks.block, 3)  # sites: qkv, out, fc1, fc2


def test_unknown_kinds_and_missing_trained_registers_are_refused():
    with pytest.raises(rc.UserError, match="unknown kinds of outliers gremlins"):
        plant(["gremlins"])
    with pytest.raises(rc.UserError, match="needs an encoder with trained registers"):
        plant(["trained-register outlier"], spec=planted_spec())
