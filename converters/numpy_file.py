"""NumPy archives (`.npz`), as big_vision writes them."""

from __future__ import annotations

import io
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from regcache_jax.converters.archive import Archive
from regcache_jax.converters.engine import StoredTensor
from regcache_jax.converters.stored import Tensors, in_one_line

from regcache_jax.core.errors import UserError, shown

_LONGEST_HEADER = 1 << 16
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npz_file(path: Path) -> Tensors:
    """A NumPy archive (names joined with `/`). bfloat16 leaves, which NumPy stores as two raw bytes, are recognised. Pickled objects
    are refused unread."""
    archive = Archive(path)
    names = [name for name in archive.members if name.endswith(".npy")]
    if not names:
        raise UserError(f"{path} is an archive without NumPy arrays")
    return {name.removesuffix(".npy"): _entry(archive, name) for name in names}


def _entry(archive: Archive, name: str) -> StoredTensor:
    size = archive.members[name].file_size
    with in_one_line(f"{archive.path}: {shown(name)}", "is no NumPy array"):
        head = io.BytesIO(archive.read(name, _LONGEST_HEADER))
        shape, in_columns, dtype = _HEADERS[np.lib.format.read_magic(head)](head)
        start = head.tell()
        if dtype.hasobject:
            raise UserError("holds pickled Python objects, which are never read")
        is_bfloat16 = dtype == np.dtype("V2")
        if not is_bfloat16 and dtype.kind not in "fiub":
            raise UserError(f"holds {shown(dtype)}; expected plain numbers (bfloat16 as two raw bytes)")
        if min(shape, default=0) < 0 or start + math.prod(shape) * dtype.itemsize != size:
            raise UserError(f"says it is {shown(list(shape))} of {dtype} but holds only {size - start} bytes")
    dtype = np.dtype(jnp.bfloat16) if is_bfloat16 else dtype

    def read() -> np.ndarray:
        array = np.frombuffer(archive.read(name), dtype, offset=start)
        return array.reshape(shape, order="F" if in_columns else "C")

    return StoredTensor(tuple(shape), dtype, archive.path.name, read)
