"""Metrics of scores, and how near features are to others. What is not a number is never right: a row with a NaN has no prediction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError

NO_PREDICTION = -1


def predictions(scores: Float[np.ndarray, "n C"]) -> Int[np.ndarray, "n"]:
    """The class of the largest score (ties: the lower); NO_PREDICTION where a score is not a number."""
    numbers = ~np.isnan(scores).any(axis=1)
    return np.where(numbers, np.argmax(scores, axis=1), NO_PREDICTION).astype(np.int32)


def unit(vectors: Float[np.ndarray, "*n E"]) -> Float[np.ndarray, "*n E"]:
    """Vectors at unit length; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def agreement(found: Int[np.ndarray, "n"], reference: Int[np.ndarray, "n"]) -> float:
    """How often two predict the same; where one predicts nothing they do not."""
    return float(np.mean((found == reference) & (found != NO_PREDICTION)))


@jax.jit
def count_hits(scores: Float[Array, "B C"], labels: Array, mask: Array) -> dict[str, Array]:
    """Seen, top-1 and top-5 hits of each class `[C]`. A label's rank is how many classes are not behind it: those of lower score are,
    and of equal score those of larger number. So a NaN, of the label or of another class, costs ranks."""
    classes = jnp.arange(scores.shape[1], dtype=jnp.int32)
    own = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[:, None], axis=1)
    behind = (scores < own) | ((scores == own) & (classes >= labels[:, None]))
    rank = jnp.where(jnp.isfinite(own[:, 0]), jnp.sum(~behind, axis=1), scores.shape[1])
    member = (labels[:, None] == classes) & (mask & (labels >= 0))[:, None]

    def count(hit: Array) -> Array:
        return jnp.sum(member & hit[:, None], axis=0, dtype=jnp.int32)

    return {"seen": count(jnp.ones_like(mask)), "top1": count(rank < 1), "top5": count(rank < 5)}


def metrics_from_counts(counts: dict[str, np.ndarray]) -> dict[str, float]:
    """acc1, acc5 (not below five classes) and mean per class recall (over classes that occur), as fractions."""
    seen = int(counts["seen"].sum())
    if seen == 0:
        raise UserError("no example has a class; a classification needs labelled pictures (one folder a class)")
    metrics = {"acc1": int(counts["top1"].sum()) / seen}
    if len(counts["seen"]) >= 5:
        metrics["acc5"] = int(counts["top5"].sum()) / seen
    occurring = counts["seen"] > 0
    metrics["mean_per_class_recall"] = float(np.mean(counts["top1"][occurring] / counts["seen"][occurring]))
    return metrics


def cosines(features: Float[np.ndarray, "n E"], reference: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n"]:
    """The cosine of every picture's feature to the float one's."""
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(reference, axis=1)
    return np.sum(features * reference, axis=1) / np.maximum(lengths, 1e-12)


def compare_features(
    features: Float[np.ndarray, "n E"], reference: Float[np.ndarray, "n E"], rows: int = 8192
) -> dict[str, float]:
    """How near features are to the float ones: mean cosine and relative error. `rows` are compared at a time."""
    cosine = error = size = 0.0
    for first in range(0, len(features), rows):
        own, known = features[first : first + rows], reference[first : first + rows]
        cosine += float(np.sum(cosines(own, known), dtype=np.float64))
        error += float(np.sum(np.square(own - known), dtype=np.float64))
        size += float(np.sum(np.square(known), dtype=np.float64))
    return {"cosine": cosine / len(features), "relative_error": (error / size) ** 0.5 if size else float(error > 0)}
