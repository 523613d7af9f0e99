"""What a plan's file promises: the same pictures are known again in any order, others are split, and a worse error is a warning."""

import dataclasses

import numpy as np
import pytest

import regcache_jax as rc
from regcache_jax.registers.search.claim import Claim
from regcache_jax.registers.search.parts import split
from regcache_jax.registers.search.promise import Promise
from regcache_jax.registers.search.result import moved_more, pictures_hash

IMAGES = np.random.default_rng(0).normal(size=(12, 4, 4, 3)).astype(np.float32)
PARTS = split(12, 0.25, seed=3)
METADATA = {
    "calibration": {
        "images": 9, "held_out": 3, "verify_share": 0.25, "seed": 3, "draws": 4, "estimator": "absmax",
        "hash": pictures_hash(IMAGES[PARTS.working]),
    },
    "scheme": rc.Scheme(8, 8).to_json(),
    "claim": {"error": 0.01, "spread": 0.001, "worst": 0.02, "images": 3},
}  # fmt: skip
PROMISE = Promise.of(METADATA)


@pytest.mark.parametrize("missing", list(METADATA))
def test_a_plan_that_no_search_has_judged_promises_nothing(missing):
    assert Promise.of({name: value for name, value in METADATA.items() if name != missing}) is None


def test_the_pictures_of_the_search_are_split_as_they_were_and_known_again():
    parts = PROMISE.parts(IMAGES)
    np.testing.assert_array_equal(parts.working, PARTS.working)
    np.testing.assert_array_equal(parts.verifying, PARTS.verifying)
    assert PROMISE.pictures == 12 and pictures_hash(IMAGES[PARTS.working][::-1]) == PROMISE.hash
    assert PROMISE.taken(IMAGES[parts.working], 3) == "calibrated on the 9 pictures that the plan was judged with"


def test_other_pictures_are_split_by_the_same_shares_and_that_is_said():
    others = IMAGES[:8] + 1
    parts = PROMISE.parts(others)
    assert (len(parts.working), len(parts.verifying)) == (6, 2)
    said = PROMISE.taken(others[parts.working], 2)
    assert said.startswith(
        "other pictures than the 9 that the plan was judged with: 6 of them calibrate, 2 are held out"
    )
    few = PROMISE.parts(others[:3])
    assert (len(few.working), len(few.verifying)) == (3, 0)  # a handful calibrates whole


def test_a_promise_is_of_the_error_that_the_search_went_by():
    assert PROMISE.speaks_of("pooled") and Promise.of({**METADATA, "objective": "features"}).speaks_of("pooled")
    assert not Promise.of({**METADATA, "objective": "accuracy"}).speaks_of("pooled")


def test_a_plan_that_moves_more_than_the_integers_do_is_told_of():
    assert moved_more(0.4, 1.0, "pooled") is None
    assert "moves the patch tokens by 0.6 of the error of 1: more than the integers" in moved_more(0.6, 1.0, "patches")


def test_a_broken_promise_is_a_warning_with_both_figures():
    kept, worse = Claim(0.0119, 0.0001, 0.1, 3), Claim(0.02, 0.001, 0.1, 3)
    assert PROMISE.broken(kept, rc.Scheme(8, 8)) is None
    warning = PROMISE.broken(worse, rc.Scheme(8, 8))
    assert "0.02 is worse than the 0.01" in warning
    assert PROMISE.broken(worse, rc.Scheme(4, 4)) is None  # other bits were promised nothing
    assert PROMISE.broken(dataclasses.replace(worse, spread=0.01), rc.Scheme(8, 8)) is None  # too few pictures to tell
