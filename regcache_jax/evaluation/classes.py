"""Classes of training and of tested pictures, joined by their names: the same number need not be the same class in two folders."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from regcache_jax.core.errors import UserError, shown
from regcache_jax.data.dataset import Dataset
from regcache_jax.evaluation.rows import Rows


class Joined(NamedTuple):
    """Labels of both in one numbering (-1: none), in which the classes that have training pictures come first."""

    training: Int[np.ndarray, "m"]
    tested: Int[np.ndarray, "n"]
    num_trained: int
    untrained: list[str]
    """Classes that are tested and have no training picture: none of their pictures can be right."""


def join_classes(bank: Dataset, voters: Rows, data: Dataset, rows: Rows) -> Joined:
    """The classes of both datasets in one numbering. Where neither names them, they are known by their numbers.

    Raises UserError where one alone names them, and where no class is in both."""
    if (bank.classnames is None) != (data.classnames is None) and _labelled(voters) and _labelled(rows):
        named, plain = (bank, data) if data.classnames is None else (data, bank)
        raise UserError(f"{named.split} of {named.name} names its classes and {plain.split} of {plain.name} does not")
    trained = {name: number for number, name in enumerate(_occurring(bank, voters.labels))}
    occurring = _occurring(data, rows.labels)
    untrained = [name for name in occurring if name not in trained]
    if trained and occurring and len(untrained) == len(occurring):
        raise UserError(
            f"{data.split} of {data.name} and its training pictures have no class in common: {shown(', '.join(untrained))} "
            f"and {shown(', '.join(trained))}"
        )
    number = {**trained, **{name: len(trained) + place for place, name in enumerate(untrained)}}
    return Joined(
        _renumbered(bank, voters.labels, number), _renumbered(data, rows.labels, number), len(trained), untrained
    )


def _labelled(rows: Rows) -> bool:
    return bool((rows.labels >= 0).any())


def _name(dataset: Dataset, label: int) -> str:
    return str(label) if dataset.classnames is None else dataset.classnames[label]


def _occurring(dataset: Dataset, labels: Int[np.ndarray, "n"]) -> list[str]:
    """Names of the classes that occur, in the dataset's order."""
    return [_name(dataset, int(label)) for label in np.unique(labels[labels >= 0])]


def _renumbered(dataset: Dataset, labels: Int[np.ndarray, "n"], number: dict[str, int]) -> Int[np.ndarray, "n"]:
    kinds, places = np.unique(labels, return_inverse=True)
    return np.array([-1 if kind < 0 else number[_name(dataset, int(kind))] for kind in kinds], np.int32)[places]
