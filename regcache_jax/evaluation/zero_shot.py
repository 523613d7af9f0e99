"""Zero-shot classification as open_clip and CLIP_benchmark do it: class vectors from prompts, counts summed on the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.data.batches import Batch
from regcache_jax.encoders.encoder import Encoder, encode_image, encode_text
from regcache_jax.evaluation.loop import MicroBatch, Parallel, sum_batches
from regcache_jax.files.identity import content_hash
from regcache_jax.files.store import Cache


def class_vectors(
    encoder: Encoder,
    tokenize: Callable[[list[str]], np.ndarray],
    classnames: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
    cache: Cache | None = None,
) -> Float[np.ndarray, "C E"]:
    """One unit vector a class: normalise each prompt's feature, average over templates, normalise. `cache`: where vectors of
    the same text tower and prompts may be found."""
    prompts = [template.replace("{c}", name) for name in classnames for template in templates]
    ids = tokenize(prompts)

    def make() -> np.ndarray:
        return average_prompts(encode_ids(encoder, ids, batch_size), len(classnames))

    made_from = [text_identity(encoder), content_hash(ids), len(templates)]
    return make() if cache is None else cache.get("class_vectors", made_from, make)


def average_prompts(features: Float[np.ndarray, "n E"], num_classes: int) -> Float[np.ndarray, "C E"]:
    """Class vectors from unit features of equally many prompts a class, one class after the other."""
    mean = features.reshape(num_classes, -1, features.shape[1]).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def encode_ids(encoder: Encoder, ids: Int[np.ndarray, "n T"], batch_size: int = 256) -> Float[np.ndarray, "n E"]:
    """Unit features of texts, in batches of one shape."""
    encode, size = jax.jit(encode_text), min(batch_size, len(ids))
    rows = []
    for first in range(0, len(ids), size):
        part = ids[first : first + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        rows.append(np.asarray(encode(encoder, padded))[: len(part)])
    return np.concatenate(rows)


def text_identity(encoder: Encoder) -> list[Any]:
    """What the features of token ids depend on: the text tower's spec, scheme and weights."""
    scheme = None if encoder.scheme is None else encoder.scheme.of_part("text")
    spec = encoder.spec.to_json()["text"]
    return [spec, None if scheme is None else scheme.to_json(), content_hash(encoder.params.text)]


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
    rows: int = 8192,
) -> dict[str, float]:
    """How near quantised features are to the float ones: mean cosine, relative error, and agreement of top-1 predictions.
    `rows` are compared at a time."""
    cosine = error = size = same = 0.0
    for first in range(0, len(features), rows):
        own, known = features[first : first + rows], reference[first : first + rows]
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(known, axis=1)
        cosine += float(np.sum(np.sum(own * known, axis=1) / np.maximum(lengths, 1e-12), dtype=np.float64))
        error += float(np.sum(np.square(own - known), dtype=np.float64))
        size += float(np.sum(np.square(known), dtype=np.float64))
        if vectors is not None:
            same += int(np.sum(np.argmax(own @ vectors.T, axis=1) == np.argmax(known @ vectors.T, axis=1)))
    measures = {"cosine": cosine / len(features), "relative_error": (error / size) ** 0.5}
    return measures if vectors is None else {**measures, "agreement": same / len(features)}
