"""Batches of one shape: decoded ahead of the device by grain's workers, the last ones padded and masked.

With several processes (`jax.distributed`) every process reads its own share, each picture exactly once, and all of them make
equally many batches, as the steps of a program that spans them must.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import itertools
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.data.cut import filled
from regcache_jax.data.dataset import Dataset, Example

MEMORY_LIMIT = 4 << 30
"""Bytes of pictures that `load_images` keeps in memory."""

TOGETHER = 8
"""Pictures that a thread decodes as one piece, at most: what grain does for a piece costs as much as a small picture."""

Preprocess = Callable[[Any], np.ndarray]
"""From a picture to the array `[S, S, 3]` that a tower takes."""


class Batch(NamedTuple):
    """Pictures, classes (-1: none), which rows are real (padding has mask False), and their places in the dataset."""

    image: Float[np.ndarray, "B Y X 3"]
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
        self.faults: dict[int, str] = {}

    @property
    def messages(self) -> list[str]:
        """What is wrong with each, in the order of the dataset."""
        return [self.faults[place] for place in sorted(self.faults)]

    def add(self, place: int, message: str) -> None:
        """Notes the picture at a place of the dataset. Raises UserError when there are too many."""
        self.faults[place] = message
        if len(self.faults) > self.allowed:
            listed = "; ".join(self.messages[:5]) + ("; ..." if len(self.faults) > 5 else "")
            raise UserError(
                f"{counted(len(self.faults), 'picture')} cannot be read, {self.allowed} may be missing: {listed}"
            )


def threads() -> int:
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


class Decoded(NamedTuple):
    """What a worker makes of an example: its picture, or why there is none (an error would end the worker)."""

    place: int
    image: np.ndarray | None
    label: int
    fault: str


class Decoding:
    """Examples at some places of a dataset, `together` of them a piece, decoded when they are asked for: what grain's workers read."""

    def __init__(self, dataset: Dataset, places: Sequence[int], preprocess: Preprocess, together: int) -> None:
        self._dataset, self._places, self._preprocess, self._together = dataset, places, preprocess, together

    def __len__(self) -> int:
        return -(-len(self._places) // self._together)

    def __getitem__(self, index: Any) -> list[Decoded]:
        first = int(index) * self._together
        return [self._decoded(int(place)) for place in self._places[first : first + self._together]]

    def _decoded(self, place: int) -> Decoded:
        try:
            example, image = load_example(self._dataset, place, self._preprocess)
        except UserError as error:
            return Decoded(place, None, -1, str(error))
        return Decoded(place, image, -1 if example.label is None else example.label, "")


def batches(
    dataset: Dataset,
    preprocess: Preprocess,
    batch_size: int,
    *,
    indices: Sequence[int] | None = None,
    share: Share | None = None,
    missing: Missing | None = None,
    workers: int = 0,
    ahead: int = 2,
) -> Iterator[Batch]:
    """Cuts a dataset (or some `indices` of it) into batches, in order; grain prepares `ahead` batches while the devices work.

    `workers`: processes that decode; 0: threads of this one. `share`: this process's part (of `jax.distributed`'s processes
    by default); every process makes as many batches as the one with most examples, the last ones all padding where need be.
    `missing`: what becomes of unreadable pictures; by default the first one raises UserError."""
    share = share or Share.of_this_process()
    order = range(len(dataset)) if indices is None else indices
    mine = order[share.process :: share.processes]
    largest_share = -(-len(order) // share.processes)
    together = max(1, min(TOGETHER, ahead * batch_size // (4 * threads())))
    source = Decoding(dataset, mine, preprocess, together)
    with contextlib.closing(_decoded(source, workers, max(1, ahead * batch_size // together))) as decoded:
        for _ in range(0, largest_share, batch_size):
            yield _assemble(list(itertools.islice(decoded, batch_size)), batch_size, preprocess, missing)
    if workers:
        gc.collect()  # grain ends by an error that keeps its last piece: shared memory, which would be told of as leaked


def _decoded(source: Decoding, workers: int, ahead: int) -> Generator[Decoded, None, None]:
    """All examples of a source in order, `ahead` pieces of them made before they are asked for."""
    if not len(source):
        return
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain asks absl's flags, which belong to programs that absl has started
        flags.FLAGS.mark_as_parsed()
    reading = grain.ReadOptions(num_threads=max(1, threads() // max(1, workers)), prefetch_buffer_size=ahead)
    pieces = grain.MapDataset.source(source).to_iter_dataset(reading)
    if workers:
        buffered = max(1, ahead // workers)
        options = grain.MultiprocessingOptions(num_workers=min(workers, len(source)), per_worker_buffer_size=buffered)
        pieces = pieces.mp_prefetch(options)
    with contextlib.closing(iter(pieces)) as made:
        for piece in made:
            yield from piece


def _assemble(row: list[Decoded], batch_size: int, preprocess: Preprocess, missing: Missing | None) -> Batch:
    for decoded in row:
        if decoded.image is None:
            if missing is None:
                raise UserError(decoded.fault)
            missing.add(decoded.place, decoded.fault)
    found = [(decoded, decoded.image) for decoded in row if decoded.image is not None]
    if not found:
        empty = preprocess(np.zeros((8, 8, 3), np.uint8))[None]
        nothing = np.zeros(0, np.int32)
        return pad_batch(empty[:0], nothing, batch_size, nothing)
    labels = np.array([decoded.label for decoded, _ in found], np.int32)
    places = np.array([decoded.place for decoded, _ in found], np.int32)
    return pad_batch(np.stack([image for _, image in found]), labels, batch_size, places)


def pad_batch(
    images: Float[np.ndarray, "n Y X 3"],
    labels: Int[np.ndarray, "n"],
    batch_size: int,
    places: Int[np.ndarray, "n"],
) -> Batch:
    """Fills a batch up with zeros, mask False, label and place -1."""
    mask = np.arange(batch_size) < len(images)
    return Batch(filled(images, batch_size, 0), filled(labels, batch_size, -1), mask, filled(places, batch_size, -1))


def load_images(
    dataset: Dataset, preprocess: Preprocess, memory_limit: int = MEMORY_LIMIT
) -> Float[np.ndarray, "n Y X 3"]:
    """All pictures of a (limited) dataset as one array: reference and calibration sets. Beyond `memory_limit` bytes it lies in
    a temporary mapped file, which goes with the array."""
    with concurrent.futures.ThreadPoolExecutor(threads()) as pool:
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


def dullness(images: Float[np.ndarray, "n Y X 3"]) -> str | None:
    """What to say of pictures that give no scale and no register worth having: all the same, or each of one colour. Else None."""
    if len(images) > 1 and all(np.array_equal(image, images[0]) for image in images[1:]):
        return f"all pictures are the same ({len(images):,}); scales and registers found on them fit no others"
    if all((image == image[:1, :1]).all() for image in images):
        return f"every picture is of one colour ({len(images):,}); scales and registers found on them fit no others"
    return None
