"""Classification by the encoder's own classifier: the linear layer that it was published with, kept in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError, shown
from regcache_jax.encoders.classifier import class_scores, classifier_of
from regcache_jax.encoders.encoder import Encoder, encode
from regcache_jax.evaluation.evaluators.labelled import classified
from regcache_jax.evaluation.job import Found, Job


def run(job: Job) -> Found:
    """Accuracy over all classes of the classifier. Raises UserError where there is no classifier, and where its classes are not the
    dataset's."""
    classifier = classifier_of(job.encoder)
    matched = match_classes(job.data.classnames, job.model.labels, classifier.floats.shape[1])
    rows = job.encode(pooled_features, job.data)

    def scores(features: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n C"]:
        return np.asarray(class_scores(classifier, features))

    labels = rows.labels if matched.numbers is None else np.where(rows.labels < 0, -1, matched.numbers[rows.labels])
    found = classified(rows, labels.astype(np.int32), scores, job.reference)
    return found._replace(notes=[*matched.notes, *found.notes])


def pooled_features(encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"]) -> Float[Array, "B E"]:
    """What the classifier reads: pooled features as they are, in float32."""
    return encode(encoder, images).features.astype(jnp.float32)


class Matched(NamedTuple):
    """The classifier's number of each class of a dataset (None: the same), and what is to be said of it."""

    numbers: Int[np.ndarray, "c"] | None
    notes: list[str]


def match_classes(dataset: Sequence[str] | None, classifier: Sequence[str] | None, num_classes: int) -> Matched:
    """Which class of the classifier each class of a dataset is: by name (also by the first of several that are parted by commas; case
    does not count) where all names are found, else by number where there are as many classes.

    Raises UserError where neither can be."""
    if dataset is None:
        return Matched(None, [])
    known = {} if classifier is None else numbers_by_name(classifier)
    wanted = [_plain(name) for name in dataset]
    if all(name in known for name in wanted):
        return Matched(np.array([known[name] for name in wanted], np.int32), [])
    if len(dataset) == num_classes:
        return Matched(
            None,
            [] if classifier is None else ["classes are taken by their numbers: their names are not the classifier's"],
        )
    lost = [name for name, plain in zip(dataset, wanted, strict=True) if plain not in known]
    names = "has no names of its classes" if classifier is None else f"has no class {shown(', '.join(lost[:5]))}"
    raise UserError(
        f"the classifier {names}, and {num_classes} classes where the pictures have {len(dataset)}: they cannot be matched"
    )


def numbers_by_name(names: Sequence[str]) -> dict[str, int]:
    """The number of each class by its name and, where no other class has that, by the first part of its name."""
    parts = [_plain(name.partition(",")[0]) for name in names]
    alone = {part: number for number, part in enumerate(parts) if parts.count(part) == 1} if len(parts) < 50_000 else {}
    return {**alone, **{_plain(name): number for number, name in enumerate(names)}}


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().lower()
