"""Training pictures and those that are tested, out of one folder of classes that has no splits."""

from __future__ import annotations

import collections
import dataclasses

from regcache_jax.data.dataset import Dataset
from regcache_jax.files.places import as_path

HELD_OUT = 5
"""Of the pictures of a class one in so many is tested, the second and every fifth after it; the others train."""


def has_splits(data_dir: str | None, *splits: str) -> bool:
    """Whether a folder holds a folder of one of these names."""
    return data_dir is not None and any((as_path(data_dir).expanduser() / split).is_dir() for split in splits)


def held_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The training pictures, and those held out for the test, of every class alike (not of those with one picture). The second says so
    in its notes."""
    labels = dataset.labels if dataset.labels is not None else [None] * len(dataset)
    seen: collections.Counter[int | None] = collections.Counter()
    parts: tuple[list[int], list[int]] = ([], [])
    for place, label in enumerate(labels):
        parts[seen[label] % HELD_OUT == 1].append(place)
        seen[label] += 1
    training, tested = (dataset.chosen(places) for places in parts)
    note = (
        f"{dataset.name} has no splits: of every class one picture in {HELD_OUT} is tested ({len(tested)}), the others train "
        f"({len(training)})"
    )
    return (
        dataclasses.replace(training, split="training part"),
        dataclasses.replace(tested, split="held out", notes=(*tested.notes, note)),
    )
