"""Batches of one shape: decoded by threads ahead of the device, the last one padded and masked."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from regcache_jax.data.sources import Dataset, Example
from regcache_jax.errors import UserError


class Batch(NamedTuple):
    """Pictures, classes (-1: none), and which rows are real (padding has mask False)."""

    image: Float[np.ndarray, "B S S 3"]
    label: Int[np.ndarray, "B"]
    mask: Bool[np.ndarray, "B"]


def load_example(dataset: Dataset, index: int, preprocess: Callable[[Any], np.ndarray]) -> tuple[Example, np.ndarray]:
    """One example and its preprocessed picture. Raises UserError that names the picture which cannot be read."""
    example = dataset[index]
    try:
        return example, preprocess(example.image)
    except UserError as error:
        message = str(error)
        raise UserError(message if example.name in message else f"{example.name}: {message}") from None


def batches(
    dataset: Dataset,
    preprocess: Callable[[Any], np.ndarray],
    batch_size: int,
    *,
    indices: Sequence[int] | None = None,
    workers: int = 2,
    ahead: int = 2,
) -> Iterator[Batch]:
    """Cuts a dataset (or some `indices` of it) into batches, in order; `ahead` batches are prepared by `workers` threads."""
    order = list(range(len(dataset))) if indices is None else list(indices)
    starts = range(0, len(order), batch_size)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque[list[concurrent.futures.Future]] = collections.deque()
        try:
            for start in starts:
                part = order[start : start + batch_size]
                waiting.append([pool.submit(load_example, dataset, index, preprocess) for index in part])
                if len(waiting) > ahead:
                    yield _assemble(waiting.popleft(), batch_size)
            while waiting:
                yield _assemble(waiting.popleft(), batch_size)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _assemble(row: list[concurrent.futures.Future], batch_size: int) -> Batch:
    loaded = [future.result() for future in row]
    images = np.stack([image for _, image in loaded])
    labels = np.array([-1 if example.label is None else example.label for example, _ in loaded], np.int32)
    return pad_batch(images, labels, batch_size)


def pad_batch(images: Float[np.ndarray, "n S S 3"], labels: Int[np.ndarray, "n"], batch_size: int) -> Batch:
    """Fills a batch up with zeros, mask False."""
    missing = batch_size - len(images)
    mask = np.arange(batch_size) < len(images)
    if missing:
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        labels = np.concatenate([labels, np.full(missing, -1, np.int32)])
    return Batch(images, labels, mask)


def load_images(
    dataset: Dataset, preprocess: Callable[[Any], np.ndarray], workers: int = 2
) -> Float[np.ndarray, "n S S 3"]:
    """All pictures of a (limited) dataset as one array: reference and calibration sets."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        loaded = pool.map(lambda index: load_example(dataset, index, preprocess)[1], range(len(dataset)))
        return np.stack(list(loaded))
