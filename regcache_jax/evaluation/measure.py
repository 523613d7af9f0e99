"""One encoder on one labelled dataset: accuracy, and how near its features are to the float encoder's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.data.cut import filled
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.evaluation.metrics import agreement, compare_features, count_hits, metrics_from_counts, predictions

Scorer = Callable[[Float[np.ndarray, "n E"]], Float[np.ndarray, "n C"]]
"""From features to a score for every class: class vectors of a text tower, or votes of nearest neighbours."""


class Labelled(NamedTuple):
    """Features of all pictures of a dataset, and their classes (-1: none)."""

    features: Float[np.ndarray, "n E"]
    labels: Int[np.ndarray, "n"]


class Measured(NamedTuple):
    """Metrics (fractions), the features and the predictions they rest on; of a classification also the classes and the places in the
    dataset of the pictures that were counted."""

    metrics: dict[str, float]
    features: Float[np.ndarray, "n E"]
    predictions: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"] | None = None
    places: Int[np.ndarray, "n"] | None = None


def measure(found: Labelled, score: Scorer, reference: Measured | None = None, rows: int = 1024) -> Measured:
    """Accuracy of features under a classifier; with `reference` (the float encoder on the same pictures) also cosine, error
    and agreement of the predictions. Hits are counted and added up on the device in integers, `rows` pictures at a time.

    Raises UserError for an empty dataset and for a class that has no score."""
    totals: dict[str, Array] | None = None
    said = []
    for first in range(0, len(found.features), rows):
        scores, labels = score(found.features[first : first + rows]), found.labels[first : first + rows]
        if labels.max() >= scores.shape[1]:
            raise UserError(
                f"a picture is of class {labels.max()}, and there are {scores.shape[1]} classes (0..{scores.shape[1] - 1}): "
                "labels and class names do not belong together"
            )
        mask = np.arange(rows) < len(scores)
        counts = _count(jnp.asarray(filled(scores, rows)), jnp.asarray(filled(labels, rows)), jnp.asarray(mask))
        totals = counts if totals is None else {name: totals[name] + count for name, count in counts.items()}
        said.append(predictions(scores))
    if totals is None:
        raise UserError("there is nothing to evaluate: the dataset is empty")
    metrics = metrics_from_counts({name: np.asarray(count) for name, count in totals.items()})
    return compared(Measured(metrics, found.features, np.concatenate(said), found.labels), reference)


def compared(found: Measured, reference: Measured | None) -> Measured:
    """The same, with cosine and relative error to the reference's features and agreement with its predictions beside the
    metrics. Raises UserError where the reference is of other pictures."""
    if reference is None:
        return found
    if len(found.features) != len(reference.features) or len(found.predictions) != len(reference.predictions):
        raise UserError(
            f"this encoder gives {len(found.features)} features, its float reference {len(reference.features)}: they cannot be compared"
        )
    near = compare_features(found.features, reference.features)
    same = agreement(found.predictions, reference.predictions)
    return found._replace(metrics={**found.metrics, **near, "agreement": same})


_count = jax.jit(count_hits)


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
