"""One encoder on one labelled dataset: accuracy, and how near its features are to the float encoder's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from regcache_jax.data.batches import Batch
from regcache_jax.encoders.encoder import Encoder, encode_image
from regcache_jax.evaluation.loop import Parallel, extract_labelled
from regcache_jax.evaluation.zero_shot import compare_features, count_hits, metrics_from_counts

Scorer = Callable[[Float[np.ndarray, "n E"]], Float[np.ndarray, "n C"]]
"""From features to a score for every class: class vectors of a text tower, or votes of nearest neighbours."""


class Labelled(NamedTuple):
    """Features of all pictures of a dataset, and their classes (-1: none)."""

    features: Float[np.ndarray, "n E"]
    labels: Int[np.ndarray, "n"]


class Measured(NamedTuple):
    """Metrics (fractions), the features and the predictions they rest on."""

    metrics: dict[str, float]
    features: Float[np.ndarray, "n E"]
    predictions: Int[np.ndarray, "n"]


def encode_all(
    encoder: Encoder,
    batches: Iterable[Batch],
    *,
    parallel: Parallel = "jit",
    micro_batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Labelled:
    """Features and classes of all pictures, in order; with several processes those of all of them, on every one."""
    found = extract_labelled(
        encode_image, encoder, batches, parallel=parallel, micro_batch=micro_batch, progress=progress
    )
    return Labelled(found["features"], found["label"])


def measure(found: Labelled, score: Scorer, reference: Measured | None = None) -> Measured:
    """Accuracy of features under a classifier; with `reference` (the float encoder on the same pictures) also cosine, error
    and agreement of the predictions."""
    scores = score(found.features)
    counts = count_hits(jnp.asarray(scores), jnp.asarray(found.labels), jnp.ones(len(scores), bool))
    metrics = metrics_from_counts({name: np.asarray(count) for name, count in counts.items()})
    predictions = np.argmax(scores, axis=1).astype(np.int32)
    if reference is not None:
        metrics |= compare_features(found.features, reference.features)
        metrics["agreement"] = float(np.mean(predictions == reference.predictions))
    return Measured(metrics, found.features, predictions)


def describe(encoder: Encoder, examples: int, **more: Any) -> dict[str, Any]:
    """What stands under `quantization` in a result row; `more` adds to it or says it better."""
    scheme, schedule = encoder.scheme, encoder.schedule
    seen = schedule is not None and schedule.stop > schedule.start
    deletes = schedule is not None and schedule.delete_count > 0
    kind = {(True, True): "prefix+delete", (True, False): "prefix", (False, True): "delete", (False, False): None}
    return {
        "scheme": "float" if scheme is None else scheme.name,
        "activations": None if scheme is None else scheme.activations,
        "weights": None if scheme is None else scheme.weights,
        "method": None if scheme is None else scheme.method,
        "registers": seen,
        "plan": kind[seen, deletes],
        "examples": examples,
        **more,
    }
