"""Intervals: against their definitions, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from regcache_jax.evaluation.intervals import binomial, bootstrap


@pytest.mark.parametrize(
    ("hits", "seen", "low", "high"),
    [(10, 20, 0.2993, 0.7007), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (710, 816, 0.8453, 0.8914)],
)
def test_wilsons_interval_has_the_published_ends(hits, seen, low, high):
    """The first is an example of many textbooks; all were worked out by hand from Wilson's formula."""
    np.testing.assert_allclose(binomial(hits, seen), (low, high), atol=1e-4)


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error_says():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap(values)
    error = values.std() / 20
    assert low < values.mean() < high
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(
        1.0, abs=0.1
    )  # a thousand draws know their ends to a few percent
    assert bootstrap(values) == (low, high) and bootstrap(np.ones(5)) == (1.0, 1.0)
