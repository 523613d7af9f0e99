"""The vocabulary of data: one example, and a sequence of them that are made when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8

from regcache_jax.core.errors import UserError
from regcache_jax.files.paths import size_and_time


class Example(NamedTuple):
    """One picture (whatever `preprocess` takes), its class if it has one, and a name to speak of it."""

    image: Any
    label: int | None
    name: str


def _no_captions(index: int) -> tuple[str, ...]:
    return ()


def _no_map(index: int) -> UInt8[np.ndarray, "Y X"] | None:
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A sequence of examples, made one by one by `get`; what only some tasks need is asked for apart, by the same places.

    `classnames`, `templates`: where they are known; every label is the number of a class name then. `files`: those that it reads,
    where they are the user's own and may change. `labels`: the classes, where they are known without reading a picture. `captions` and
    `segmentation` (a map of classes, one byte a pixel, as large as the picture) of an example: none where there are none. `naming`: an
    example's name, where it is known without reading a picture. `notes`: what was left out, a line each, for the user to be told."""

    name: str
    split: str
    length: int
    get: Callable[[int], Example]
    classnames: Sequence[str] | None = None
    templates: Sequence[str] | None = None
    files: Sequence[epath.Path] = ()
    labels: Sequence[int | None] | None = None
    captions: Callable[[int], tuple[str, ...]] = _no_captions
    segmentation: Callable[[int], UInt8[np.ndarray, "Y X"] | None] = _no_map
    naming: Callable[[int], str] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        """Raises UserError for a class without a name, where the classes have names."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        example = self.get(index)
        if self.classnames is not None and example.label is not None:
            check_label(example.label, len(self.classnames), example.name)
        return example

    def name_of(self, index: int) -> str:
        """The name of an example; its place, where it has none because it cannot be read."""
        if self.naming is not None:
            return self.naming(index)
        try:
            return self.get(index).name
        except UserError:
            return f"{self.name}/{self.split}/{index}"

    def identity(self) -> list[Any]:
        """What tells this dataset from others, in JSON: name, split, length, and of its files name, size and time."""
        return [self.name, self.split, len(self), [[str(file), *size_and_time(file)] for file in self.files]]

    def chosen(self, places: Sequence[int]) -> Dataset:
        """Only the examples at some places, in that order."""
        kept = [int(place) for place in places]
        return dataclasses.replace(
            self,
            length=len(kept),
            get=lambda index: self[kept[index]],
            labels=None if self.labels is None else [self.labels[place] for place in kept],
            captions=lambda index: self.captions(kept[index]),
            segmentation=lambda index: self.segmentation(kept[index]),
            naming=lambda index: self.name_of(kept[index]),
        )

    def spread(self, limit: int | None) -> Dataset:
        """At most so many examples, evenly spread over those that there are."""
        if limit is None or limit >= len(self):
            return self
        return self.chosen(np.linspace(0, len(self) - 1, limit).round().astype(int).tolist())


def check_label(label: int, num_classes: int, where: str) -> None:
    """Raises UserError for a class that has no name."""
    if not 0 <= label < num_classes:
        raise UserError(
            f"{where} is of class {label}; there are {num_classes} class names, of classes 0..{num_classes - 1}"
        )
