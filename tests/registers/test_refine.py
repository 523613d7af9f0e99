import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regcache_jax as rc
from regcache_jax.core.plan import empty_plan
from regcache_jax.registers.refine import Offsets, RefineConfig, moved, refine
from regcache_jax.studies.planted import plant, planted_spec

SPEC = planted_spec(width=64, num_blocks=4, num_heads=4, image_size=32, patch_size=8)
SCHEME = rc.Scheme(4, 4)
CONFIG = RefineConfig(passes=3, chunk=4)


@pytest.fixture(scope="module")
def planted():
    return plant(["patch sinks"], spec=SPEC, num_images=14)


@pytest.fixture(scope="module")
def plan():
    """A poor plan: random rows in the second half of the blocks."""
    key, value = (jax.random.normal(jax.random.key(seed), (4, 1, 4, 16)) for seed in (0, 1))
    return rc.make_plan(key, value, copies=3.0, start=2, delete_block=3, delete_count=1)


def test_offsets_of_zero_leave_a_plan_as_it_is(plan):
    same = moved(plan, Offsets(jnp.zeros_like(plan.key), jnp.zeros_like(plan.value), jnp.full((4, 4, 1), jnp.log(3.0))))
    for one, other in zip(jax.tree.leaves(same.per_block()), jax.tree.leaves(plan.per_block()), strict=True):
        np.testing.assert_allclose(
            *np.broadcast_arrays(one, other), rtol=1e-6
        )  # offsets that all heads share stand once


@pytest.mark.slow
def test_refining_lowers_the_held_back_error_of_a_poor_plan_and_changes_only_rows_that_are_seen(planted, plan):
    seen = []
    result = refine(planted.encoder, planted.images, SCHEME, plan, CONFIG, progress=lambda *row: seen.append(row))
    assert result.error < result.error_before and result.error == min(result.history)
    assert [number for number, *_ in seen] == list(range(1, len(result.history) + 1))
    assert result.plan.schedule() == plan.schedule()
    np.testing.assert_array_equal(result.plan.key[:2], plan.key[:2])
    assert not np.allclose(result.plan.key[2:], plan.key[2:]) and result.plan.copies.shape == (4, 4, 1)


@pytest.mark.slow
def test_refining_for_patches_lowers_their_error(planted, plan):
    result = refine(planted.encoder, planted.images, SCHEME, plan, dataclasses.replace(CONFIG, objective="patches"))
    assert result.error < result.error_before
    with pytest.raises(rc.UserError, match="refining goes by an error without labels"):
        RefineConfig(objective="accuracy")


def test_settings_out_of_bounds_and_misspelt_ones_are_refused_when_built():
    with pytest.raises(rc.UserError, match="passes must be at least 1, got 0; held_back must be at most 1, got 2"):
        RefineConfig(passes=0, held_back=2.0)
    with pytest.raises(rc.UserError, match="RefineConfig has no learning_rat; did you mean learning_rate"):
        RefineConfig(learning_rat=1.0)


@pytest.mark.slow
def test_refining_never_returns_something_worse_than_it_was_given(planted, plan):
    wild = dataclasses.replace(CONFIG, learning_rate=100.0, passes=2)
    result = refine(planted.encoder, planted.images, SCHEME, plan, wild)
    assert result.error == min(result.error_before, *result.history)
    if result.error == result.error_before:
        assert result.plan is plan


@pytest.mark.slow
def test_refining_stops_when_nothing_has_got_better_for_a_while(planted, plan):
    wild = dataclasses.replace(CONFIG, learning_rate=100.0, passes=20, patience=2)
    assert len(refine(planted.encoder, planted.images, SCHEME, plan, wild).history) < 20


def test_a_plan_without_registers_has_nothing_to_refine(planted):
    with pytest.raises(rc.UserError, match="no registers to refine"):
        refine(planted.encoder, planted.images, SCHEME, empty_plan(4, 4, 16), CONFIG)
