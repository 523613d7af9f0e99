"""Retrieval against the definition, written plainly."""

from __future__ import annotations

import numpy as np
import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.evaluation.evaluators.zeroshot_retrieval import retrieval_metrics


def plain_recall(scores, matches, k):
    """Share of queries with a match among the k first of a stable sort."""
    found = [
        bool(set(np.argsort(-row, kind="stable")[:k]) & set(match)) for row, match in zip(scores, matches, strict=True)
    ]
    return np.mean(found)


def test_recall_equals_the_definition_on_scores_full_of_ties():
    rng = np.random.default_rng(0)
    # small integers: products are exact, and most scores occur several times
    images, texts = (rng.integers(-1, 2, (count, 3)).astype(np.float32) for count in (40, 90))
    picture = rng.integers(0, 37, 90)  # several texts for some pictures, none for others
    found = retrieval_metrics(images, texts, picture, recall_at=(1, 3, 50), rows=16)
    described = np.unique(picture)
    of_picture = [np.flatnonzero(picture == number) for number in described]
    assert len(described) < 40 and max(map(len, of_picture)) > 1
    for k in (1, 3, 50):
        assert found[f"image_retrieval_recall@{k}"] == plain_recall(texts @ images.T, picture[:, None], k)
        assert found[f"text_retrieval_recall@{k}"] == plain_recall(images[described] @ texts.T, of_picture, k)


def test_a_picture_that_is_its_own_text_is_found_first():
    vectors = np.eye(6, dtype=np.float32)
    assert set(retrieval_metrics(vectors, vectors, np.arange(6)).values()) == {1.0}


def test_an_empty_side_and_a_text_without_its_picture_are_refused():
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match="3 pictures and 0 texts"):
        retrieval_metrics(vectors, vectors[:0], np.zeros(0, int))
    with pytest.raises(UserError, match=r"0\.\.2"):
        retrieval_metrics(vectors, vectors, np.array([0, 1, 3]))
