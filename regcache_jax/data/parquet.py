"""Rows of a parquet file as a dataset: pictures themselves or the paths of them, in the columns that img2dataset, Hugging Face's datasets
and others write.

A row group is read when its first row is asked for, and the last few are kept: what lies in memory is a few row groups, not the file.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.files.bounded import open_in_pieces

PICTURES = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img")
"""Columns that hold pictures: bytes, or `{bytes, path}` as Hugging Face's datasets write them."""
PATHS = ("image_path", "path", "file_path", "filepath", "file_name", "filename", *PICTURES)
"""Columns that hold paths, as texts; relative ones are meant from the parquet file's folder."""
CAPTIONS = ("caption", "text", "TEXT")
KEYS = ("key", "__key__", "id")
"""Columns that name a row."""
KEPT = 2
"""Row groups that are kept in memory."""

_reading = threading.Lock()


@contextlib.contextmanager
def _opened(file: epath.PathLike) -> Iterator[pq.ParquetFile]:
    """A file whose faults, wherever they show, are one line."""
    try:
        with open_in_pieces(file) as raw:
            yield pq.ParquetFile(raw)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{shown(file)} is no readable parquet file: {shown(error)}") from None


@functools.lru_cache(maxsize=KEPT)
def _group(file: str, number: int, columns: tuple[str, ...]) -> pa.Table:
    with _opened(file) as rows:
        table = rows.read_row_group(number, columns=list(columns))
        table.validate(full=True)  # what a damaged index points at is not looked at before
        if table.num_rows != (said := rows.metadata.row_group(number).num_rows):
            raise ValueError(f"its row group {number} holds {table.num_rows} rows, not {said}")
        return table


def _column(file: str, number: int, columns: tuple[str, ...], name: str) -> pa.ChunkedArray:
    with _reading:  # threads that ask for rows of one group read it once
        return _group(file, number, columns).column(name)


def num_rows(file: epath.Path) -> int:
    """The rows of a parquet file, by its footer. Raises UserError for what is none."""
    with _opened(file) as rows:
        groups = sum(rows.metadata.row_group(each).num_rows for each in range(rows.num_row_groups))
        if groups != rows.metadata.num_rows:
            raise ValueError(f"its footer says {rows.metadata.num_rows} rows, and of its row groups {groups}")
        return groups


def parquet_dataset(file: epath.Path, first: int, end: int, prefix: str) -> Dataset:
    """The rows `first` to `end` - 1 of a file. Rows are called by their key, or `prefix` and their number, or their path. Raises UserError
    where no column holds pictures or paths."""
    with _opened(file) as rows:
        schema, groups = rows.schema_arrow, rows.metadata
        names = schema.names
        starts = np.cumsum([0, *(groups.row_group(each).num_rows for each in range(groups.num_row_groups))])
    caption = next((name for name in CAPTIONS if name in names), None)
    key = next((name for name in KEYS if name in names), None)
    own = _Rows(file, first, tuple(starts.tolist()), _picture_column(file, schema), caption, key, prefix)
    return Dataset(
        prefix, "all", end - first, own.get, captions=own.captions, naming=own.naming, files=(file,)
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of a file from `first` on. `starts`: the first row of each row group, and how many there are; then the columns."""

    file: epath.Path
    first: int
    starts: tuple[int, ...]
    picture: str
    caption: str | None
    key: str | None
    prefix: str

    def _cell(self, index: int, name: str) -> Any:
        row = self.first + index
        group = bisect.bisect_right(self.starts, row) - 1
        texts = tuple(column for column in (self.caption, self.key) if column is not None)
        columns = texts if name in texts else (name,)
        return _column(str(self.file), group, columns, name)[row - self.starts[group]].as_py()

    def naming(self, index: int) -> str:
        found = None if self.key is None else self._cell(index, self.key)
        return f"{self.prefix}/{self.first + index if found is None else found}"

    def get(self, index: int) -> Example:
        found = self._cell(index, self.picture)
        if isinstance(found, dict):
            found = found["bytes"] or found.get("path")
        name = self.naming(index)
        if found is None:
            raise UserError(f"{name} holds no picture: {self.picture} is empty")
        if isinstance(found, bytes):
            return Example(found, None, name)
        return Example(found if "://" in found else str(self.file.parent / found), None, name)

    def captions(self, index: int) -> tuple[str, ...]:
        found = None if self.caption is None else self._cell(index, self.caption)
        return (str(found),) if found else ()


def _picture_column(file: epath.Path, schema: pa.Schema) -> str:
    """The column to read: pictures, or else paths."""
    kinds = {name: schema.field(name).type for name in schema.names}
    for name in PICTURES:
        kind = kinds.get(name)
        if kind is not None and (
            pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
            or (pa.types.is_struct(kind) and "bytes" in [field.name for field in kind])
        ):
            return name
    for name in PATHS:
        kind = kinds.get(name)
        if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return name
    raise UserError(
        f"{file} has no column of pictures (bytes: {', '.join(PICTURES)}) or paths ({', '.join(PATHS[:6])}); it has "
        f"{shown(', '.join(schema.names))}"
    )
