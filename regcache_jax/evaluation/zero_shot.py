"""Zero-shot classification as open_clip and CLIP_benchmark do it: class vectors from prompts, counts summed on the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.data.batches import Batch
from regcache_jax.encoders.encoder import Encoder, encode_image, encode_text
from regcache_jax.errors import UserError
from regcache_jax.evaluation.loop import MicroBatch, Parallel, sum_batches


def class_vectors(
    encoder: Encoder,
    tokenize: Callable[[list[str]], np.ndarray],
    classnames: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
) -> Float[np.ndarray, "C E"]:
    """One unit vector a class: normalise each prompt's feature, average over templates, normalise."""
    prompts = [template.replace("{c}", name) for name in classnames for template in templates]
    encode = jax.jit(encode_text)
    rows = []
    for first in range(0, len(prompts), batch_size):
        ids = tokenize(prompts[first : first + batch_size])
        missing = min(batch_size, len(prompts)) - len(ids)
        padded = np.concatenate([ids, np.repeat(ids[-1:], missing, axis=0)]) if missing else ids
        rows.append(np.asarray(encode(encoder, padded))[: len(ids)])
    mean = np.concatenate(rows).reshape(len(classnames), len(templates), -1).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def class_scores(features: Float[np.ndarray, "n E"], vectors: Float[np.ndarray, "C E"]) -> Float[np.ndarray, "n C"]:
    """Cosine of every picture with every class, for features and vectors of unit length."""
    return features @ vectors.T


def count_hits(scores: Float[Array, "B C"], labels: Array, mask: Array) -> dict[str, Array]:
    """Seen, top-1 and top-5 hits of each class `[C]`. A label's rank is how many classes outscore it (or tie before it)."""
    classes = jnp.arange(scores.shape[1], dtype=jnp.int32)
    own = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[:, None], axis=1)
    ahead = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    rank = jnp.sum(ahead, axis=1)
    member = (labels[:, None] == classes) & (mask & (labels >= 0))[:, None]

    def count(hit: Array) -> Array:
        return jnp.sum(member & hit[:, None], axis=0, dtype=jnp.int32)

    return {"seen": count(jnp.ones_like(mask)), "top1": count(rank < 1), "top5": count(rank < 5)}


def metrics_from_counts(counts: dict[str, np.ndarray]) -> dict[str, float]:
    """acc1, acc5 (not below five classes) and mean per class recall (over classes that occur), as fractions."""
    seen = int(counts["seen"].sum())
    if seen == 0:
        raise UserError("no example has a class; zero-shot classification needs labelled pictures (one folder a class)")
    metrics = {"acc1": int(counts["top1"].sum()) / seen}
    if len(counts["seen"]) >= 5:
        metrics["acc5"] = int(counts["top5"].sum()) / seen
    occurring = counts["seen"] > 0
    metrics["mean_per_class_recall"] = float(np.mean(counts["top1"][occurring] / counts["seen"][occurring]))
    return metrics


def zero_shot(
    encoder: Encoder,
    vectors: Float[np.ndarray, "C E"],
    batches: Iterable[Batch],
    *,
    parallel: Parallel = "jit",
    micro_batch: MicroBatch = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Accuracy of an encoder on labelled batches; the same counts under pmap, sharded jit and on one device."""
    state = (encoder, jnp.asarray(vectors, jnp.float32))
    counts = sum_batches(_count, state, batches, parallel=parallel, micro_batch=micro_batch, progress=progress)
    return metrics_from_counts(counts)


def _count(state: Any, batch: Batch) -> dict[str, Array]:
    """Hits of each class in one batch."""
    features = encode_image(state[0], jnp.asarray(batch.image))
    return count_hits(features @ state[1].T, jnp.asarray(batch.label), jnp.asarray(batch.mask))


def compare_features(
    features: Float[np.ndarray, "n E"],
    reference: Float[np.ndarray, "n E"],
    vectors: Float[np.ndarray, "C E"] | None = None,
) -> dict[str, float]:
    """How near quantised features are to the float ones: mean cosine, relative error, and agreement of top-1 predictions."""
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(reference, axis=1)
    measures = {
        "cosine": float(np.mean(np.sum(features * reference, axis=1) / np.maximum(lengths, 1e-12))),
        "relative_error": float(np.linalg.norm(features - reference) / np.linalg.norm(reference)),
    }
    if vectors is not None:
        same = np.argmax(features @ vectors.T, axis=1) == np.argmax(reference @ vectors.T, axis=1)
        measures["agreement"] = float(np.mean(same))
    return measures
