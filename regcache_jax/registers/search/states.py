"""Hidden states of the reference set, kept at the inputs of a few blocks: in memory, or on disk beyond a limit."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from typing import Any

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

MEMORY_LIMIT = 4 << 30
"""Bytes of hidden states kept in memory; beyond it they lie in temporary files."""


class States:
    """States of every chunk of images at every entry block, all of one shape and dtype.

    In memory they stay where they were computed (on the devices). On disk there is one mapped file an entry, in a folder that
    goes with this object."""

    def __init__(
        self, entries: tuple[int, ...], num_chunks: int, shape: tuple[int, ...], dtype: DTypeLike, memory_limit: int
    ) -> None:
        size = len(entries) * num_chunks * int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._chunks: list[dict[int, Any]] = [{} for _ in range(num_chunks)]
        self._files: dict[int, np.memmap[Any, Any]] = {}
        self.on_disk = size > memory_limit
        if self.on_disk:
            folder = tempfile.mkdtemp(prefix="regcache-states-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            for block in entries:
                self._files[block] = np.memmap(f"{folder}/{block}", dtype=dtype, mode="w+", shape=(num_chunks, *shape))

    def put(self, chunk: int, states: dict[int, Float[Array | np.ndarray, "B N D"]]) -> None:
        """Keeps one chunk's states, by entry block."""
        if self.on_disk:
            for block, array in states.items():
                self._files[block][chunk] = np.asarray(array)
        else:
            self._chunks[chunk] = states

    def get(self, chunk: int, block: int) -> Float[Array, "B N D"] | Float[np.ndarray, "B N D"]:
        """One chunk's states at the input of an entry block."""
        return self._files[block][chunk] if self.on_disk else self._chunks[chunk][block]
