"""What quantising has changed, picture by picture: intervals of the figures, gains, classes and answers that flipped, bytes.

It is made of the answers that every row of the table has left in the work folder, and stands in the report's story."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from regcache_jax.data import Dataset
from regcache_jax.evaluation.intervals import binomial, bootstrap
from regcache_jax.evaluation.measure import Measured
from regcache_jax.evaluation.metrics import cosines
from regcache_jax.files.workdir import Json, read_array, write_array
from regcache_jax.models.description import read_description
from regcache_jax.report.sinks import thumbnail

SHOWN = 40
"""Pictures with a flipped answer that the page shows, of each scheme."""
SIDE = 64
"""Of their thumbnails, in pixels."""


class Answers(NamedTuple):
    """What one row of the table answered, and how near its features are to the float encoder's (all ones for that itself)."""

    predictions: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    places: Int[np.ndarray, "n"]
    cosines: Float[np.ndarray, "n"]

    @property
    def right(self) -> Int[np.ndarray, "n"]:
        """1 where the answer is the picture's class."""
        return (self.predictions == self.labels).astype(np.int32)


def answers_file(stage: str) -> str:
    """Where a row's answers lie in the work folder."""
    return f"answers/{stage}.npy"


def write_answers(folder: epath.Path, stage: str, found: Measured, reference: Measured | None) -> None:
    """Keeps a row's answers. float64 holds every one of the numbers exactly."""
    assert found.labels is not None and found.places is not None
    near = np.ones(len(found.features)) if reference is None else cosines(found.features, reference.features)
    write_array(
        folder / answers_file(stage), np.stack([found.predictions, found.labels, found.places, near]).astype(np.float64)
    )


def read_answers(folder: epath.Path, stage: str) -> Answers:
    """A row's answers."""
    predictions, labels, places, near = read_array(folder / answers_file(stage))
    return Answers(predictions.astype(np.int32), labels.astype(np.int32), places.astype(np.int32), near)


def intervals_of(answers: Answers) -> Json:
    """95 % intervals: of top-1 Wilson's, of the mean cosine the bootstrap's."""
    return {
        "acc1": binomial(int(answers.right.sum()), len(answers.right)),
        "cosine": bootstrap(answers.cosines),
    }


def gain_of(before: Answers, after: Answers) -> Json:
    """How much more of the pictures is right, with the bootstrap's interval over pictures: both saw the same."""
    difference = after.right - before.right
    return {"acc1": float(difference.mean()), "interval": bootstrap(difference.astype(np.float64))}


def classes_of(rows: Sequence[Answers], name: Callable[[int], str]) -> list[list[Any]]:
    """The classes in which the rows differ: name, pictures, and how many each row gets right."""
    labels, changed = rows[0].labels, []
    for label in np.unique(labels):
        own = labels == label
        right = [int(row.right[own].sum()) for row in rows]
        if len(set(right)) > 1:
            changed.append([name(int(label)), int(own.sum()), *right])
    return changed


def flips_of(rows: Sequence[Answers], dataset: Dataset, name: Callable[[int], str]) -> Json:
    """The pictures whose answer is not the float encoder's, the first row: how many of each later row, and some of them with their
    answers; those that the last row changes come first."""
    changed = [row.predictions != rows[0].predictions for row in rows[1:]]
    order = np.argsort(-(2 * changed[-1].astype(np.int32) + changed[0]), kind="stable")
    chosen = [int(number) for number in order[:SHOWN] if any(each[number] for each in changed)]
    shown = []
    for number in chosen:
        example = dataset[int(rows[0].places[number])]
        answers = [name(int(row.predictions[number])) for row in rows]
        truth = name(int(rows[0].labels[number]))
        shown.append(
            {"name": example.name, "picture": thumbnail(example.image, SIDE), "class": truth, "answers": answers}
        )
    return {"counts": [int(each.sum()) for each in changed], "shown": shown}


def parameter_bytes(folder: epath.PathLike) -> int:
    """Bytes of a model folder's parameters, by its description."""
    return sum(
        math.prod(shape) * jnp.dtype(dtype).itemsize for dtype, shape in read_description(folder)["parameters"].values()
    )
