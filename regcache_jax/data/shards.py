"""Records that are read one by one from large files, and TFDS's classic TFRecord files, which are indexed once by their headers and need
no TensorFlow."""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.files.bounded import open_in_pieces
from regcache_jax.files.pictures import LARGEST_FILE
from regcache_jax.files.places import as_path


class Place(NamedTuple):
    """Where a record lies."""

    file: str
    offset: int
    size: int


class _Open:
    """An open file that is closed when nobody keeps it any more: threads end, and shards are read one after the other."""

    def __init__(self, path: str) -> None:
        self.file: Any = None
        self.file = open_in_pieces(path)

    def __del__(self) -> None:
        if self.file is not None:
            self.file.close()


class Handles(threading.local):
    """Open files, kept open for each thread, because reading moves a file's position."""

    def __init__(self) -> None:
        self.open = functools.lru_cache(maxsize=32)(_Open)


_HANDLES = Handles()


def read(place: Place, limit: int) -> bytes:
    """The bytes of a record. Raises UserError for one of more than `limit`, and for a file that ends too early."""
    if place.size > limit:
        raise UserError(
            f"{place.file}: the record at byte {place.offset} is too large: {place.size:,} bytes, at most {limit:,} are read"
        )
    handle = _HANDLES.open(place.file).file
    handle.seek(place.offset)
    data = handle.read(place.size)
    if len(data) != place.size:
        raise UserError(f"{place.file} ends inside the record at byte {place.offset}")
    return data


def tfrecord_index(file: epath.Path, skip: int = 0, take: int | None = None) -> list[Place]:
    """The records of a TFRecord file (after the first `skip`, at most `take`): 8 bytes of length, 4 of checksum, the data, 4 of
    checksum. Raises UserError for a file that breaks off."""
    places: list[Place] = []
    stored = file.stat().length
    offset, number = 0, 0
    with open_in_pieces(file) as handle:
        while offset < stored and (take is None or number < skip + take):
            handle.seek(offset)
            header = handle.read(12)
            size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else stored
            if offset + 16 + size > stored:
                raise UserError(f"{file} is not a whole TFRecord file: it breaks off at byte {offset}")
            if number >= skip:
                places.append(Place(str(file), offset + 12, size))
            offset, number = offset + 16 + size, number + 1
    return places


class TfrecordSource:
    """A split of a TFDS dataset kept as TFRecord files, as a sequence of decoded rows."""

    def __init__(self, instructions: Sequence[Any], decode: Callable[[bytes], Any]) -> None:
        """`instructions`: TFDS's own list of files with what to take of each; `decode`: from a record to a row."""
        self._decode = decode
        self._places = [
            place
            for part in instructions
            for place in tfrecord_index(as_path(part.filename), part.skip, None if part.take == -1 else part.take)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        return self._decode(read(self._places[index], LARGEST_FILE))
