"""One encoder on one labelled dataset: accuracy, and how near its features are to the float encoder's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from regcache_jax.data.batches import Batch
from regcache_jax.encoders.encoder import Encoder, encode_image
from regcache_jax.evaluation.loop import Parallel, extract_features
from regcache_jax.evaluation.zero_shot import compare_features, count_hits, metrics_from_counts


class Measured(NamedTuple):
    """Metrics (fractions) and the features they rest on."""

    metrics: dict[str, float]
    features: Float[np.ndarray, "n E"]


def measure(
    encoder: Encoder,
    vectors: Float[np.ndarray, "C E"],
    batches: Iterable[Batch],
    *,
    reference: Float[np.ndarray, "n E"] | None = None,
    parallel: Parallel = "jit",
    micro_batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Zero-shot accuracy; with `reference` (float features of the same pictures) also cosine, error and agreement."""
    labels: list[np.ndarray] = []

    def remember() -> Iterator[Batch]:
        for batch in batches:
            labels.append(batch.label[batch.mask])
            yield batch

    features = extract_features(
        encode_image, encoder, remember(), parallel=parallel, micro_batch=micro_batch, progress=progress
    )
    scores = jnp.asarray(features @ vectors.T)
    counts = count_hits(scores, jnp.asarray(np.concatenate(labels)), jnp.ones(len(features), bool))
    metrics = metrics_from_counts({name: np.asarray(count) for name, count in counts.items()})
    if reference is not None:
        metrics |= compare_features(features, reference, vectors)
    return Measured(metrics, features)


def describe(encoder: Encoder, examples: int, **more: Any) -> dict[str, Any]:
    """What stands under `quantization` in a result row."""
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
