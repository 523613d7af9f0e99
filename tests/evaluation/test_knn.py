"""k-NN classification against the definition, written plainly."""

from __future__ import annotations

import numpy as np
import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.evaluation.evaluators.knn import make_bank


def plain_votes(features, bank, labels, num_classes, neighbours, temperature):
    """One picture, one neighbour at a time, in float64."""
    votes = np.zeros((len(features), num_classes))
    for row, feature in enumerate(np.asarray(features, np.float64)):
        cosines = [feature @ other / np.linalg.norm(feature) / np.linalg.norm(other) for other in bank.astype(float)]
        for index in np.argsort(-np.array(cosines), kind="stable")[:neighbours]:
            votes[row, labels[index]] += np.exp(cosines[index] / temperature)
    return votes


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0)])
def test_votes_are_those_of_the_definition_up_to_a_factor_a_picture(neighbours, temperature):
    rng = np.random.default_rng(neighbours)
    features, bank = (rng.normal(size=(count, 16)).astype(np.float32) for count in (37, 200))
    labels = rng.integers(0, 9, 200).astype(np.int32)
    found = make_bank(bank, labels, 10, neighbours=neighbours, temperature=temperature).scores(features, rows=16)
    plain = plain_votes(features, bank, labels, 10, neighbours, temperature)
    assert found.shape == (37, 10)
    # float32 cosines, divided by 0.07 in an exponent: 1e-6 / 0.07 relative, and some
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), plain / plain.sum(1, keepdims=True), atol=2e-5)


def test_the_nearest_neighbour_of_a_training_picture_is_itself():
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(50, 8)).astype(np.float32)
    labels = np.arange(50, dtype=np.int32)
    assert (make_bank(bank, labels, 50, neighbours=1).scores(3.0 * bank).argmax(axis=1) == labels).all()


def test_twenty_weak_neighbours_can_outvote_a_strong_one_only_at_high_temperature():
    bank = np.array([[1.0, 0.0]] + [[0.8, 0.6]] * 3, np.float32)
    labels = np.array([0, 1, 1, 1], np.int32)
    feature = np.array([[1.0, 0.0]], np.float32)
    decided = [
        int(make_bank(bank, labels, 2, neighbours=4, temperature=heat).scores(feature).argmax())
        for heat in (0.07, 10.0)
    ]
    assert decided == [0, 1]  # exp(-0.2 / 0.07) = 0.06, three of them 0.17; at 10.0 nearly 3


def test_too_few_or_unlabelled_training_pictures_are_refused():
    bank = np.ones((5, 4), np.float32)
    with pytest.raises(UserError, match="k = 20 needs as many training pictures, got 5"):
        make_bank(bank, np.zeros(5, np.int32), 1)
    with pytest.raises(UserError, match="labelled"):
        make_bank(bank, np.full(5, -1, np.int32), 1, neighbours=2)
