"""The tasks: which rows of an encoder each needs, and the metrics that it makes of them.

Every task gives `Measured`: its metrics and, where there is a reference, how near the features are to those of the float encoder and
how often the two say the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.data.annotations import IGNORED
from regcache_jax.data.dataset import Dataset
from regcache_jax.encoders.encoder import Encoder, encode_image
from regcache_jax.evaluation.dense import (
    confusion,
    fit_segmentation,
    load_maps,
    patch_classes,
    patch_features,
    segmentation_metrics,
)
from regcache_jax.evaluation.embedding import embed_texts
from regcache_jax.evaluation.knn import NEIGHBOURS, TEMPERATURE, make_bank
from regcache_jax.evaluation.linear_probe import features_of, fit_probe
from regcache_jax.evaluation.measure import Labelled, Measured, Scorer, compared, measure
from regcache_jax.evaluation.protocol import Prompts
from regcache_jax.evaluation.retrieval import nearest_texts, retrieval_metrics
from regcache_jax.evaluation.rows import Rows
from regcache_jax.evaluation.zero_shot import class_scores, class_vectors
from regcache_jax.files.store import Cache
from regcache_jax.models.folder import Model

Encode = Callable[[Callable[[Encoder, Any], Any], Dataset], Rows]
"""Runs a dataset through one encoder: `rows.encode_dataset` with all but these two given."""
Found = tuple[Measured, Rows]
"""What a task gives, and the rows it rests on (which say what is missing)."""

TRAINED = ("knn", "linear_probe", "dense")
"""Tasks that take training pictures."""


class Options(NamedTuple):
    """What the tasks can be told: of k-NN how many vote and how sharply, what a linear probe is fitted to, the k of recall@k."""

    neighbours: int = NEIGHBOURS
    temperature: float = TEMPERATURE
    features: str = "pooled"
    recall_at: tuple[int, ...] = (1, 5, 10)


DEFAULTS = Options()


def measure_task(
    task: str,
    model: Model,
    encoder: Encoder,
    encode: Encode,
    data: Dataset,
    *,
    bank: Dataset | None = None,
    prompts: Prompts | None = None,
    options: Options = DEFAULTS,
    cache: Cache | None = None,
    reference: Measured | None = None,
) -> Found:
    """One task, by name, for one encoder. `model` reads texts; `encode` runs `encoder`, which may be the model's own or made of it.
    `bank` goes with the tasks that are TRAINED, `prompts` with zero-shot classification."""
    if task == "zeroshot_classification":
        assert prompts is not None
        words = prompts.classnames, prompts.templates
        vectors = class_vectors(model.encoder, model.tokenize, *words, cache=cache)
        return classification(encode, data, vectors, reference)
    if task == "zeroshot_retrieval":
        return retrieval(encode, data, functools.partial(embed_texts, model, cache=cache), options.recall_at, reference)
    assert bank is not None
    if task == "knn":
        return nearest_neighbours(
            encode, data, bank, neighbours=options.neighbours, temperature=options.temperature, reference=reference
        )
    if task == "linear_probe":
        return linear_probe(encode, encoder, data, bank, options.features, reference)
    return dense(encode, encoder, data, bank, reference)


def classification(
    encode: Encode, data: Dataset, vectors: Float[np.ndarray, "C E"], reference: Measured | None = None
) -> Found:
    """Zero-shot classification by class vectors."""

    def scores(features: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n C"]:
        return class_scores(features, vectors)

    rows = encode(encode_image, data)
    return measure(Labelled(rows.features, rows.labels), scores, reference), rows


def nearest_neighbours(
    encode: Encode,
    data: Dataset,
    bank: Dataset,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    reference: Measured | None = None,
) -> Found:
    """k-NN by the training pictures in `bank`, whose features the same encoder makes."""
    voters, rows = encode(encode_image, bank), encode(encode_image, data)
    kept = make_bank(
        voters.features, voters.labels, _classes(voters, rows), neighbours=neighbours, temperature=temperature
    )
    return measure(Labelled(rows.features, rows.labels), kept.scores, reference), rows


def linear_probe(
    encode: Encode, encoder: Encoder, data: Dataset, bank: Dataset, features: str = "pooled",
    reference: Measured | None = None,
) -> Found:  # fmt: skip
    """A linear probe fitted to `features` (a name of `linear_probe.FEATURES`) of the training pictures in `bank`."""
    chosen = features_of(features, encoder)
    training, rows = encode(chosen, bank), encode(chosen, data)
    score: Scorer = fit_probe(training.features, training.labels, _classes(training, rows)).scores
    found = measure(Labelled(rows.features, rows.labels), score, reference)
    return found, rows


def _classes(*parts: Rows) -> int:
    """One more than the largest class that occurs."""
    return 1 + max(int(part.labels.max()) for part in parts)


def retrieval(
    encode: Encode,
    data: Dataset,
    embed: Callable[[list[str]], Float[np.ndarray, "t E"]],
    recall_at: Sequence[int] = (1, 5, 10),
    reference: Measured | None = None,
) -> Found:
    """Zero-shot retrieval between the pictures that have captions and those. `embed`: unit features of texts.

    Raises UserError where no picture has a caption."""
    captions = [data[place].captions for place in range(len(data))]
    described = [place for place, texts in enumerate(captions) if texts]
    if not described:
        raise UserError(f"no picture of {data.name} has a caption; --captions FILE gives them (JSON)")
    rows = encode(encode_image, data.chosen(described))
    own = [captions[described[int(place)]] for place in rows.places]  # of the pictures that could be read
    texts = embed([text for each in own for text in each])
    picture = np.repeat(np.arange(len(own)), [len(each) for each in own])
    metrics = retrieval_metrics(rows.features, texts, picture, recall_at=recall_at)
    return compared(Measured(metrics, rows.features, nearest_texts(rows.features, texts)), reference), rows


def dense(encode: Encode, encoder: Encoder, data: Dataset, bank: Dataset, reference: Measured | None = None) -> Found:
    """Segmentation by a linear probe on the patches of the training pictures in `bank`. Features are those of single patches,
    predictions their classes.

    Raises UserError for pictures without a map of classes."""
    spec, preparation = encoder.spec.image, encoder.spec.preprocessing
    training, rows = encode(patch_features, bank), encode(patch_features, data)
    known, truth = load_maps(bank, training.places, preparation), load_maps(data, rows.places, preparation)
    count = 1 + max(int(maps[maps != IGNORED].max(initial=0)) for maps in (known, truth))
    probe = fit_segmentation(training.features, patch_classes(known, spec.grid, spec.patch_size, count), count)
    metrics = segmentation_metrics(confusion(probe, rows.features, truth, spec.patch_size))
    patches = rows.features.reshape(-1, rows.features.shape[-1])
    predictions = probe.scores(patches).argmax(axis=1).astype(np.int32)
    return compared(Measured(metrics, patches, predictions), reference), rows
