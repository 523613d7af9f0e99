"""The linear probe against scikit-learn, and its sweep against facts known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from regcache_jax.core.errors import UserError
from regcache_jax.evaluation.evaluators.linear_probe import fit_probe

CLASSES = 4


def clouds(count: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around one centre a class; the centres are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, 6))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    return (centres[labels] + spread * rng.normal(size=(count, 6))).astype(np.float32), labels.astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_probabilities_are_those_of_scikit_learn_at_the_same_penalty(decay):
    features, labels = clouds(300, spread=1.5)
    probe = fit_probe(features, labels, CLASSES, weight_decays=[decay])
    inputs = (features - probe.mean) / probe.deviation
    peer = LogisticRegression(C=1 / (len(features) * decay), tol=1e-8, max_iter=5000).fit(inputs, labels)
    logits = probe.scores(features)
    ours = np.exp(logits - logits.max(1, keepdims=True))
    # both stop near the same minimum of a convex function; ours in float32, where gradients end at about 1e-6
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), peer.predict_proba(inputs), atol=1e-3)


@pytest.mark.slow
def test_separable_classes_are_told_apart_on_new_pictures():
    features, labels = clouds(200, spread=0.05)
    unseen, truth = clouds(100, spread=0.05, seed=1)
    assert (fit_probe(features, labels, CLASSES).scores(unseen).argmax(1) == truth).all()


@pytest.mark.slow
def test_the_sweep_leaves_out_a_decay_that_makes_all_classes_alike():
    features, labels = clouds(200, spread=0.5)
    probe = fit_probe(features, labels, CLASSES, weight_decays=[1e6, 1e-2])
    assert probe.weight_decay == 1e-2  # at 1e6 only the bias is left, which answers the commonest class


def test_moving_and_stretching_the_features_changes_no_prediction():
    features, labels = clouds(200, spread=1.0)
    plain = fit_probe(features, labels, CLASSES).scores(features).argmax(1)
    moved = 8.0 * features + np.float32(2.0)
    assert np.mean(fit_probe(moved, labels, CLASSES).scores(moved).argmax(1) == plain) > 0.99  # float32 on a boundary


def test_unlabelled_or_too_few_training_pictures_are_refused():
    features, labels = clouds(20, spread=1.0)
    with pytest.raises(UserError, match="labelled"):
        fit_probe(features, np.full(20, -1, np.int32), CLASSES)
    with pytest.raises(UserError, match="got 4"):
        fit_probe(features[:4], labels[:4], CLASSES)
