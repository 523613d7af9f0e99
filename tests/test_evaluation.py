"""The evaluation loop and zero-shot classification: the same counts however the work is spread."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score

from regcache_jax.data.batches import Batch, pad_batch
from regcache_jax.errors import UserError
from regcache_jax.evaluation import results
from regcache_jax.evaluation.loop import extract_features, sum_batches
from regcache_jax.evaluation.zero_shot import compare_features, count_hits, metrics_from_counts

CLASSES = 7


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 2, 2, 3)).astype(np.float32), rng.integers(0, CLASSES, count).astype(np.int32)


def in_batches(images: np.ndarray, labels: np.ndarray, size: int) -> list[Batch]:
    places = np.arange(len(images), dtype=np.int32)
    starts = range(0, len(images), size)
    return [pad_batch(images[i : i + size], labels[i : i + size], size, places[i : i + size]) for i in starts]


def project(matrix, images):
    return images.reshape(images.shape[0], -1) @ matrix


def count(matrix, batch):
    scores = project(matrix, jnp.asarray(batch.image))
    return count_hits(scores, jnp.asarray(batch.label), jnp.asarray(batch.mask))


@pytest.mark.parametrize("number", [1, 8, 37, 10_007])
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_counts_over_eight_devices_equal_plain_numpy_to_the_last_one(number, parallel):
    images, labels = examples(number)
    matrix = np.random.default_rng(0).normal(size=(12, CLASSES)).astype(np.float32)
    counts = sum_batches(count, jnp.asarray(matrix), in_batches(images, labels, 64), parallel=parallel)
    scores = images.reshape(number, -1) @ matrix
    order = np.argsort(-scores, axis=1, kind="stable")
    assert int(counts["seen"].sum()) == number
    assert int(counts["top1"].sum()) == int((order[:, 0] == labels).sum())
    assert int(counts["top5"].sum()) == int((order[:, :5] == labels[:, None]).any(axis=1).sum())


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_features_come_back_in_order_without_padding(parallel, micro_batch):
    images, labels = examples(21)
    matrix = np.eye(12, dtype=np.float32)
    features = extract_features(
        project, jnp.asarray(matrix), in_batches(images, labels, 16), parallel=parallel, micro_batch=micro_batch
    )
    np.testing.assert_allclose(features, images.reshape(21, 12), rtol=1e-6)


def test_a_batch_that_does_not_divide_and_an_empty_dataset_are_refused():
    images, labels = examples(5)
    with pytest.raises(UserError, match="does not divide"):
        sum_batches(count, jnp.zeros((12, CLASSES)), in_batches(images, labels, 5))
    with pytest.raises(UserError, match="nothing to evaluate"):
        sum_batches(count, jnp.zeros((12, CLASSES)), [])


def test_metrics_equal_scikit_learn_on_random_scores():
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(300, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, 300).astype(np.int32)
    counts = jax.tree.map(np.asarray, count_hits(jnp.asarray(scores), jnp.asarray(labels), jnp.ones(300, bool)))
    metrics = metrics_from_counts(counts)
    predicted = scores.argmax(axis=1)
    assert metrics["acc1"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["acc5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert metrics["mean_per_class_recall"] == pytest.approx(recall_score(labels, predicted, average="macro"))


def test_tied_scores_go_to_the_lower_class_as_argmax_does():
    scores = jnp.zeros((3, 4))
    counts = count_hits(scores, jnp.asarray([0, 1, 3], jnp.int32), jnp.ones(3, bool))
    assert int(counts["top1"].sum()) == 1


def test_acc5_is_left_out_below_five_classes():
    counts = {"seen": np.array([1, 1]), "top1": np.array([1, 0]), "top5": np.array([1, 1])}
    assert "acc5" not in metrics_from_counts(counts)


def test_equal_features_have_cosine_one_and_full_agreement():
    features = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    measures = compare_features(features, features, np.eye(5, dtype=np.float32))
    assert measures["cosine"] == pytest.approx(1.0)
    assert measures["relative_error"] == 0.0 and measures["agreement"] == 1.0


def test_result_rows_have_clip_benchmark_keys_and_are_written_whole(tmp_path):
    row = results.row(
        dataset="emoji", model="m", pretrained="p", task="zeroshot_classification", metrics={"acc1": 0.5},
        quantization={"scheme": "float"},
    )  # fmt: skip
    assert set(row) == {"dataset", "model", "pretrained", "task", "metrics", "language", "quantization"}
    results.write(tmp_path / "rows.json", [row])
    with pytest.raises(ValueError):
        results.write(tmp_path / "rows.json", [{**row, "metrics": {"acc1": float("nan")}}])
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]
