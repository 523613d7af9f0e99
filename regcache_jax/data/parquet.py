"""Rows of a parquet file as a dataset: pictures themselves or the paths of them, in the columns that img2dataset, Hugging Face's datasets
and others write.

A row group is read when its first row is asked for, and the last few are kept: what lies in memory is a few row groups, not the file.
"""

from __future__ import annotations

import bisect
import functools
import threading
from collections.abc import Callable
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


@functools.lru_cache(maxsize=KEPT)
def _group(file: str, number: int, columns: tuple[str, ...]) -> pa.Table:
    with open_in_pieces(file) as raw:
        return pq.ParquetFile(raw).read_row_group(number, columns=list(columns))


def _column(file: str, number: int, columns: tuple[str, ...], name: str) -> pa.ChunkedArray:
    with _reading:  # threads that ask for rows of one group read it once
        return _group(file, number, columns).column(name)


def num_rows(file: epath.Path) -> int:
    """The rows of a parquet file, by its footer. Raises UserError for what is none."""
    return _footer(file).metadata.num_rows


def _footer(file: epath.Path) -> pq.ParquetFile:
    try:
        with open_in_pieces(file) as raw:
            return pq.ParquetFile(raw)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is no readable parquet file: {shown(error)}") from None


def parquet_dataset(file: epath.Path, first: int, end: int, prefix: str) -> Dataset:
    """The rows `first` to `end` - 1 of a file. Rows are called by their key, or `prefix` and their number. Raises UserError where no column
    holds pictures or paths."""
    footer = _footer(file)
    schema = footer.schema_arrow
    starts = np.cumsum([0, *(footer.metadata.row_group(each).num_rows for each in range(footer.num_row_groups))])
    column, taken = _picture_column(file, schema)
    caption = next((name for name in CAPTIONS if name in schema.names), None)
    key = next((name for name in KEYS if name in schema.names), None)
    texts = tuple(name for name in (caption, key) if name is not None)

    def cell(index: int, name: str, columns: tuple[str, ...]) -> Any:
        row = first + index
        group = bisect.bisect_right(starts, row) - 1
        return _column(str(file), group, columns, name)[int(row - starts[group])].as_py()

    def naming(index: int) -> str:
        found = None if key is None else cell(index, key, texts)
        return f"{prefix}/{first + index if found is None else found}"

    def get(index: int) -> Example:
        found = taken(cell(index, column, (column,)))
        name = naming(index)
        if found is None:
            raise UserError(f"{name} holds no picture: {column} is empty")
        if isinstance(found, bytes):
            return Example(found, None, name)
        return Example(str(found if "://" in found else file.parent / found), None, found)

    def captions(index: int) -> tuple[str, ...]:
        found = None if caption is None else cell(index, caption, texts)
        return () if not found else (str(found),)

    return Dataset(prefix, "all", end - first, get, captions=captions, naming=naming, files=(file,))


def _picture_column(file: epath.Path, schema: pa.Schema) -> tuple[str, Callable[[Any], Any]]:
    """The column to read, and what takes bytes or a path out of its cells."""
    for name in PICTURES:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name, lambda cell: cell
            if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
                return name, lambda cell: None if cell is None else cell["bytes"] or cell.get("path")
    for name in PATHS:
        if name in schema.names and (
            pa.types.is_string(kind := schema.field(name).type) or pa.types.is_large_string(kind)
        ):
            return name, lambda cell: cell
    raise UserError(
        f"{file} has no column of pictures (bytes: {', '.join(PICTURES)}) or paths ({', '.join(PATHS[:6])}); it has "
        f"{shown(', '.join(schema.names))}"
    )
