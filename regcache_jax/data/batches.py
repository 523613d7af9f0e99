"""Batches of one shape: decoded by threads ahead of the device, the last ones padded and masked.

With several processes (`jax.distributed`) every process reads its own share, each picture exactly once, and all of them make
equally many batches, as the steps of a program that spans them must.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from regcache_jax.data.sources import Dataset, Example
from regcache_jax.errors import UserError

MEMORY_LIMIT = 4 << 30
"""Bytes of pictures that `load_images` keeps in memory."""

Preprocess = Callable[[Any], np.ndarray]
"""From a picture to the array `[S, S, 3]` that a tower takes."""


class Batch(NamedTuple):
    """Pictures, classes (-1: none), which rows are real (padding has mask False), and their places in the dataset."""

    image: Float[np.ndarray, "B S S 3"]
    label: Int[np.ndarray, "B"]
    mask: Bool[np.ndarray, "B"]
    place: Int[np.ndarray, "B"]


class Share(NamedTuple):
    """Which process of how many reads: process p takes every `processes`-th example, from the p-th on."""

    process: int
    processes: int

    @classmethod
    def of_this_process(cls) -> Share:
        """The share of this process among those that `jax.distributed` has joined; everything where it runs alone."""
        return cls(jax.process_index(), jax.process_count())


class Missing:
    """Pictures that could not be read: up to `allowed` are left out and listed, one more ends the run."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Notes a picture. Raises UserError when there are too many."""
        self.messages.append(message)
        if len(self.messages) > self.allowed:
            listed = "; ".join(self.messages[:5]) + ("; ..." if len(self.messages) > 5 else "")
            raise UserError(f"{len(self.messages)} pictures cannot be read, {self.allowed} may be missing: {listed}")


def workers() -> int:
    """Threads that decode: one a core, as far as that helps."""
    return min(16, os.cpu_count() or 1)


def load_example(dataset: Dataset, index: int, preprocess: Preprocess) -> tuple[Example, np.ndarray]:
    """One example and its preprocessed picture. Raises UserError that names the picture which cannot be read."""
    example = dataset[index]
    try:
        return example, preprocess(example.image)
    except UserError as error:
        message = str(error)
        raise UserError(message if example.name in message else f"{example.name}: {message}") from None


def batches(
    dataset: Dataset,
    preprocess: Preprocess,
    batch_size: int,
    *,
    indices: Sequence[int] | None = None,
    share: Share | None = None,
    missing: Missing | None = None,
    ahead: int = 2,
) -> Iterator[Batch]:
    """Cuts a dataset (or some `indices` of it) into batches, in order; `ahead` batches are prepared by threads.

    `share`: this process's part (of `jax.distributed`'s processes by default); every process makes as many batches as the one
    with most examples, the last ones all padding where need be. `missing`: what becomes of unreadable pictures; by default
    the first one raises UserError."""
    share = share or Share.of_this_process()
    order = range(len(dataset)) if indices is None else indices
    mine = order[share.process :: share.processes]
    largest_share = -(-len(order) // share.processes)
    with concurrent.futures.ThreadPoolExecutor(workers()) as pool:
        waiting: collections.deque[list[concurrent.futures.Future]] = collections.deque()
        numbers: collections.deque[Sequence[int]] = collections.deque()

        def assemble() -> Batch:
            return _assemble(waiting.popleft(), numbers.popleft(), batch_size, preprocess, missing)

        try:
            for start in range(0, largest_share, batch_size):
                part = mine[start : start + batch_size]
                waiting.append([pool.submit(load_example, dataset, index, preprocess) for index in part])
                numbers.append(part)
                if len(waiting) > ahead:
                    yield assemble()
            while waiting:
                yield assemble()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _assemble(
    row: list[concurrent.futures.Future],
    indices: Sequence[int],
    batch_size: int,
    preprocess: Preprocess,
    missing: Missing | None,
) -> Batch:
    images, labels, kept = [], [], []
    for index, future in zip(indices, row, strict=True):
        try:
            example, image = future.result()
        except UserError as error:
            if missing is None:
                raise
            missing.add(str(error))
            continue
        images.append(image)
        labels.append(-1 if example.label is None else example.label)
        kept.append(index)
    if not images:
        empty = preprocess(np.zeros((8, 8, 3), np.uint8))[None]
        nothing = np.zeros(0, np.int32)
        return pad_batch(empty[:0], nothing, batch_size, nothing)
    return pad_batch(np.stack(images), np.array(labels, np.int32), batch_size, np.array(kept, np.int32))


def pad_batch(
    images: Float[np.ndarray, "n S S 3"],
    labels: Int[np.ndarray, "n"],
    batch_size: int,
    places: Int[np.ndarray, "n"],
) -> Batch:
    """Fills a batch up with zeros, mask False, label and place -1."""
    missing = batch_size - len(images)
    mask = np.arange(batch_size) < len(images)
    if missing:
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        labels = np.concatenate([labels, np.full(missing, -1, np.int32)])
        places = np.concatenate([places, np.full(missing, -1, np.int32)])
    return Batch(images, labels, mask, places)


def load_images(
    dataset: Dataset, preprocess: Preprocess, memory_limit: int = MEMORY_LIMIT
) -> Float[np.ndarray, "n S S 3"]:
    """All pictures of a (limited) dataset as one array: reference and calibration sets. Beyond `memory_limit` bytes it lies in
    a temporary mapped file, which goes with the array."""
    with concurrent.futures.ThreadPoolExecutor(workers()) as pool:
        loaded = pool.map(lambda index: load_example(dataset, index, preprocess)[1], range(len(dataset)))
        first = next(loaded)
        shape = (len(dataset), *first.shape)
        if len(dataset) * first.nbytes > memory_limit:
            with tempfile.TemporaryFile() as file:  # has no name, so nothing is left behind however the process ends
                images: np.ndarray = np.memmap(file, first.dtype, "w+", shape=shape)
        else:
            images = np.empty(shape, first.dtype)
        for index, image in enumerate(itertools.chain([first], loaded)):
            images[index] = image
    return images
