"""A source of pictures cut into parts: each is known by what it holds and opened by whoever works on it.

Shards of webdataset are parts as they are. What knows how much it holds without being read (a folder, a list of paths, parquet and
ArrayRecord files, a dataset with a name) is cut after so many pictures. The cut depends on the source alone, not on who works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.data.dataset import Dataset
from regcache_jax.data.folders import folder_dataset
from regcache_jax.data.lists import cut_lines, listed_dataset
from regcache_jax.data.patterns import Found, files_of
from regcache_jax.data.webdataset import shards_dataset
from regcache_jax.files.identity import fingerprint
from regcache_jax.files.paths import size_and_time
from regcache_jax.files.places import as_path


class Part(NamedTuple):
    """Some pictures of a source. `identity`: what tells them from others, in JSON; `pictures`: how many, where that is known before they
    are opened."""

    identity: list[Any]
    pictures: int | None
    open: Callable[[], Dataset]


Kind = Callable[[Found, int], list[Part]]


def parts_of_images(images: str, size: int) -> tuple[Part, ...]:
    """The parts of a folder, or of the files that a name or a pattern means: .tar, .parquet, .array_record, or .txt with a path a line.

    Raises UserError for what is not there, and for files of other kinds."""
    root = as_path(images).expanduser()
    if root.is_dir():
        return parts_of_dataset(folder_dataset("folder", root, None), size)
    parts: list[Part] = []
    for found in files_of(images):
        parts += _kind(found.path)(found, size)
    if not parts:
        raise UserError(f"{shown(images)} holds no pictures")
    return tuple(parts)


def parts_of_dataset(dataset: Dataset, size: int) -> tuple[Part, ...]:
    """The parts of a dataset that has a length. They are known by its name, and by the names and lengths of its files."""
    each = len(dataset.files) == len(dataset)  # a file a picture
    sizes = [size_and_time(file)[0] for file in dataset.files]
    names = [dataset.name_of(place) for place in range(len(dataset))] if each else [file.name for file in dataset.files]
    parts = []
    for first in range(0, len(dataset), size):
        places = range(first, min(first + size, len(dataset)))
        own = slice(first, places.stop) if each else slice(None)
        listed = fingerprint([names[own], sizes[own]])
        identity = [dataset.name, dataset.split, len(dataset), first, listed]
        parts.append(Part(identity, len(places), functools.partial(dataset.chosen, places)))
    return tuple(parts)


def _kind(file: epath.Path) -> Kind:
    name = file.name.lower()
    kinds: tuple[tuple[bool, Kind], ...] = (
        (name.endswith(".tar"), _shard),
        (name.endswith(".parquet"), _parquet),
        (".array_record" in name or name.endswith(".arrayrecord"), _records),
        (name.endswith(".txt"), _list),
    )
    for fits, kind in kinds:
        if fits:
            return kind
    raise UserError(
        f"{shown(file)} is no source of pictures: a folder, .tar shards, .parquet, .array_record, or a .txt with a path a line"
    )


def _shard(found: Found, size: int) -> list[Part]:
    def opened() -> Dataset:
        return shards_dataset([found.path], (found.name, "all"), str(found.path), prefix=found.name)

    return [Part([found.name, found.size], None, opened)]


def _parquet(found: Found, size: int) -> list[Part]:
    from regcache_jax.data.parquet import num_rows, parquet_dataset

    return _of_rows(found, num_rows(found.path), size, parquet_dataset)


def _records(found: Found, size: int) -> list[Part]:
    from regcache_jax.data.records import num_records, records_dataset

    return _of_rows(found, num_records(found.path), size, records_dataset)


def _of_rows(found: Found, rows: int, size: int, dataset: Callable[[epath.Path, int, int, str], Dataset]) -> list[Part]:
    parts = []
    for first in range(0, rows, size):
        end = min(first + size, rows)
        opened = functools.partial(dataset, found.path, first, end, found.name)
        parts.append(Part([found.name, found.size, first, end], end - first, opened))
    return parts


def _list(found: Found, size: int) -> list[Part]:
    return [
        Part([part.offset, part.size, part.sha256], part.pictures, functools.partial(listed_dataset, found.path, part))
        for part in cut_lines(found.path, size)
    ]
