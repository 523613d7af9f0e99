"""ArrayRecord files as a dataset: a record is the bytes of a picture, or a `tf.train.Example` with one among its features.

Datasets that TFDS prepared as ArrayRecord are opened by their names (`open_dataset`), which know more of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import Any

from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.files.bounded import decode

PICTURES = ("image/encoded", "image", "jpg", "jpeg", "png", "webp", "image_bytes")
CAPTIONS = ("caption", "text", "image/caption")

_one_thread = threading.Lock()


@functools.lru_cache(maxsize=8)
def _reader(file: str) -> Any:
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordReader(file)


@contextlib.contextmanager
def _reading(file: str) -> Iterator[Any]:
    """The file's reader, one thread at a time. Its faults, wherever they show, are one line."""
    try:
        with _one_thread:
            yield _reader(file)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{shown(file)} is no readable ArrayRecord file: {shown(error)}") from None


def num_records(file: epath.Path) -> int:
    """The records of a file, by its footer. Raises UserError for what is none, and for one without records."""
    with _reading(str(file)) as reader:
        count = reader.num_records()  # 0 also for a file of another kind
    if not count:
        raise UserError(f"{file} is no readable ArrayRecord file, or holds no records")
    return count


def _record(file: str, number: int) -> bytes:
    with _reading(file) as reader:
        return reader.read([number])[0]


def records_dataset(file: epath.Path, first: int, end: int, prefix: str) -> Dataset:
    """The records `first` to `end` - 1 of a file, called by `prefix` and their number."""
    records = _Records(str(file), first, prefix)
    return Dataset(
        prefix, "all", end - first, records.get, captions=records.captions, naming=records.naming, files=(file,)
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Records:
    """Records of a file from `first` on."""

    file: str
    first: int
    prefix: str

    def naming(self, index: int) -> str:
        return f"{self.prefix}/{self.first + index}"

    def get(self, index: int) -> Example:
        record = _record(self.file, self.first + index)
        features = _features(record)
        if features is None:
            return Example(record, None, self.naming(index))
        found = next((features[name] for name in PICTURES if features.get(name)), None)
        if found is None:
            held = shown(", ".join(sorted(features)))
            raise UserError(f"{self.naming(index)} holds no picture; its features are {held}")
        return Example(found, None, self.naming(index))

    def captions(self, index: int) -> tuple[str, ...]:
        features = _features(_record(self.file, self.first + index)) or {}
        found = next((features[name] for name in CAPTIONS if features.get(name)), None)
        return () if found is None else (decode(found, self.naming(index)),)


def _features(record: bytes) -> dict[str, bytes] | None:
    """The first bytes of every feature of a tf.train.Example; None for a record that is none (pictures never parse as one: their first
    byte is no field of it)."""
    if record[:1] != b"\x0a":
        return None
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
    except Exception:  # protobuf's own
        return None
    return {name: feature.bytes_list.value[0] for name, feature in features.items() if feature.bytes_list.value}
