"""ArrayRecord files as a dataset: a record is the bytes of a picture, or a `tf.train.Example` with one among its features.

Datasets that TFDS prepared as ArrayRecord are opened by their names (`open_dataset`), which know more of them.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.files.bounded import decode

PICTURES = ("image/encoded", "image", "jpg", "jpeg", "png", "webp", "image_bytes")
CAPTIONS = ("caption", "text", "image/caption")

_reading = threading.Lock()


@functools.lru_cache(maxsize=8)
def _reader(file: str) -> Any:
    from array_record.python import array_record_module

    try:
        return array_record_module.ArrayRecordReader(file)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{file} is no readable ArrayRecord file: {shown(error)}") from None


def num_records(file: epath.Path) -> int:
    """The records of a file, by its footer. Raises UserError for what is none."""
    with _reading:
        return _reader(str(file)).num_records()


def _record(file: str, number: int) -> bytes:
    with _reading:
        return _reader(file).read([number])[0]


def records_dataset(file: epath.Path, first: int, end: int, prefix: str) -> Dataset:
    """The records `first` to `end` - 1 of a file, called by `prefix` and their number."""

    def naming(index: int) -> str:
        return f"{prefix}/{first + index}"

    def get(index: int) -> Example:
        record = _record(str(file), first + index)
        features = _features(record)
        if features is None:
            return Example(record, None, naming(index))
        found = next((features[name] for name in PICTURES if features.get(name)), None)
        if found is None:
            raise UserError(f"{naming(index)} holds no picture; its features are {shown(', '.join(sorted(features)))}")
        return Example(found, None, naming(index))

    def captions(index: int) -> tuple[str, ...]:
        features = _features(_record(str(file), first + index)) or {}
        found = next((features[name] for name in CAPTIONS if features.get(name)), None)
        return () if found is None else (decode(found, naming(index)),)

    return Dataset(prefix, "all", end - first, get, captions=captions, naming=naming, files=(file,))


def _features(record: bytes) -> dict[str, bytes] | None:
    """The first bytes of every feature of a tf.train.Example; None for a record that is none (pictures never parse as one: their first
    byte is no field of it)."""
    if record[:1] != b"\x0a":
        return None
    from tensorflow_datasets.proto.tf_example_pb2 import Example as TfExample  # type: ignore[import-untyped]

    try:
        features = TfExample.FromString(record).features.feature
    except Exception:  # protobuf's own
        return None
    return {name: feature.bytes_list.value[0] for name, feature in features.items() if feature.bytes_list.value}
