"""Rows on their way into a file: they lie in a temporary file without a name, so that memory holds a batch and not a partition."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Shaped

ROWS = 1000
"""Rows of a row group: what a reader has in memory at a time."""


class Spool:
    """An .npy that grows by rows of one shape and dtype."""

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        self.shape, self.dtype, self.rows = tuple(shape), np.dtype(dtype), 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the spool is
        self._header()
        self._start = self._file.tell()

    def _header(self) -> None:
        """NumPy leaves room for the number of rows to grow: the header has the same length whatever it is."""
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, rows: Shaped[np.ndarray, "n *R"]) -> None:
        """Appends rows."""
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Forgets the rows, if nobody took them."""
        self._file.close()

    def content(self) -> mmap.mmap:
        """The whole file, mapped, when all rows are there."""
        with self._file:
            self._file.seek(0)
            self._header()
            assert self._file.tell() == self._start
            self._file.flush()
            return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def array(self) -> Float[np.ndarray, "n *R"]:
        """The same as an array."""
        return np.frombuffer(self.content(), self.dtype, offset=self._start).reshape(self.rows, *self.shape)


def parquet_bytes(columns: Mapping[str, Sequence[object]], features: Mapping[str, np.ndarray]) -> mmap.mmap:
    """A parquet file: columns of texts (None: no value), and features [n, ...] as fixed-size lists, whose shape stands in the field's
    metadata as `shape`. The same bytes for the same content."""
    fields = [pa.field(name, pa.string()) for name in columns]
    for name, array in features.items():
        kind = pa.list_(pa.from_numpy_dtype(array.dtype), int(np.prod(array.shape[1:])))
        fields.append(pa.field(name, kind, metadata={"shape": ",".join(map(str, array.shape[1:]))}))
    schema = pa.schema(fields)
    rows = len(next(iter(columns.values())))
    with tempfile.TemporaryFile() as file:
        with pq.ParquetWriter(file, schema) as writer:
            for first in range(0, rows, ROWS):
                part = slice(first, first + ROWS)
                texts = [pa.array(column[part], pa.string()) for column in columns.values()]
                lists = [
                    pa.FixedSizeListArray.from_arrays(pa.array(array[part].reshape(-1)), type=schema.field(name).type)
                    for name, array in features.items()
                ]
                writer.write_batch(pa.record_batch([*texts, *lists], schema=schema))
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
