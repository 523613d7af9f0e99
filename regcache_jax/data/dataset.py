"""The vocabulary of data: one example, and a sequence of them that are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from regcache_jax.files.paths import size_and_time


class Example(NamedTuple):
    """One picture (whatever `preprocess` takes), its class if it has one, and a name to speak of it; captions and a map of
    classes (one byte a pixel, as large as the picture) where the dataset has them."""

    image: Any
    label: int | None
    name: str
    captions: tuple[str, ...] = ()
    segmentation: np.ndarray | None = None


class Dataset:
    """A sequence of examples, made one by one by a function, with class names and prompt templates where they are known."""

    def __init__(
        self,
        name: str,
        split: str,
        length: int,
        get: Callable[[int], Example],
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        files: Sequence[epath.Path] = (),
    ) -> None:
        """`files`: those that it reads, where they are the user's own and may change."""
        self.name, self.split, self._files = name, split, files
        self._length, self._get = length, get
        self.classnames = None if classnames is None else tuple(classnames)
        self.templates = None if templates is None else tuple(templates)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._get(index)

    def identity(self) -> list[Any]:
        """What tells this dataset from others, in JSON: name, split, length, and of its files name, size and time."""
        return [self.name, self.split, len(self), [[str(file), *size_and_time(file)] for file in self._files]]

    def chosen(self, places: Sequence[int]) -> Dataset:
        """Only the examples at some places, in that order."""
        return Dataset(
            self.name, self.split, len(places), lambda index: self[int(places[index])],
            self.classnames, self.templates, self._files,
        )  # fmt: skip

    def annotated(self, annotate: Callable[[Example], Example], files: Sequence[epath.Path] = ()) -> Dataset:
        """The same dataset with more known of every example, from some files."""
        return Dataset(
            self.name, self.split, len(self), lambda index: annotate(self[index]),
            self.classnames, self.templates, (*self._files, *files),
        )  # fmt: skip
