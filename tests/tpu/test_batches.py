"""The choice of a batch: no valley holds it."""

from __future__ import annotations

import math

import pytest

from regcache_jax.tpu.ask import SWEEP
from regcache_jax.tpu.batches import cheapest, sweep

# As the compiler had it for plain int8 of a SigLIP B/16: a shallow valley at 48, where a walk from 32 ended, and the deep one at 24.
TWO_VALLEYS = {1: 640, 2: 420, 4: 360, 8: 330, 12: 312, 16: 303, 20: 301, 24: 300, 32: 460, 40: 430, 48: 412, 64: 520}


def test_the_lower_of_two_valleys_is_found_wherever_it_lies():
    assert cheapest(sweep(TWO_VALLEYS.get, SWEEP)) == 24
    mirrored = dict(zip(SWEEP, reversed(TWO_VALLEYS.values()), strict=True))
    assert cheapest(sweep(mirrored.get, SWEEP)) == 12


@pytest.mark.parametrize("floor", SWEEP)
def test_the_floor_of_a_single_valley_is_found_with_fewer_trials_than_there_are_batches(floor):
    tried = sweep(lambda batch: abs(math.log(batch / floor)), SWEEP)
    assert cheapest(tried) == floor and len(tried) < len(SWEEP)


def test_all_programs_share_the_coarse_set_and_no_batch_is_asked_for_twice():
    asked: list[int] = []
    sweep(lambda batch: asked.append(batch) or TWO_VALLEYS[batch], SWEEP)
    assert asked[:5] == [1, 8, 20, 40, 64] and len(set(asked)) == len(asked)


def test_batches_that_cannot_be_are_left_out_and_none_is_chosen_where_all_are():
    assert cheapest(sweep(lambda batch: math.inf if batch > 8 else 1 / batch, SWEEP)) == 8
    assert cheapest(sweep(lambda batch: math.inf, SWEEP)) is None
    assert cheapest(sweep(lambda batch: 1.0, (32,))) == 32
