"""Arrays that a work folder keeps: chunks of an evaluation that may be killed, and what a text tower has made of texts.

A file is the SHA-256 of its rest, a line break, and an .npz; one whose hash is wrong is as good as none. The first of several
processes writes; all of them read, so a folder that several hosts share lies where they all see it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import numpy as np
from etils import epath

from regcache_jax.files.distributed import is_first
from regcache_jax.files.identity import fingerprint, sha256
from regcache_jax.files.paths import sweep, write_whole
from regcache_jax.files.places import as_path

Arrays = dict[str, np.ndarray]


def npz_bytes(arrays: Arrays) -> bytes:
    """Arrays by name as an .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def write_arrays(path: epath.Path, arrays: Arrays) -> None:
    """Writes arrays by name, whole or not at all."""
    content = npz_bytes(arrays)
    write_whole(path, sha256(content).encode() + b"\n" + content)


def read_arrays(path: epath.Path) -> Arrays | None:
    """Arrays by name; None for a file that is not there or not as it was written."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest != sha256(content).encode():
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return dict(stored)
    except (ValueError, OSError, zipfile.BadZipFile):
        return None


class Store:
    """Arrays by number or name, of things made from the same: a folder named by its hash. Without a work folder it keeps
    nothing."""

    def __init__(self, workdir: epath.PathLike | None, kind: str, made_from: object) -> None:
        self.folder = None if workdir is None else as_path(workdir) / kind / fingerprint(made_from)
        if self.folder is not None and is_first():
            sweep(self.folder)

    def _file(self, name: str) -> epath.Path:
        assert self.folder is not None
        return self.folder / f"{name}.arrays"

    def read(self, name: str) -> Arrays | None:
        """What was written under a name, if it is there and whole."""
        return None if self.folder is None else read_arrays(self._file(name))

    def damaged(self, name: str) -> bool:
        """Whether there is a file of that name (which `read` did not believe)."""
        return self.folder is not None and self._file(name).exists()

    def write(self, name: str, arrays: Arrays) -> None:
        """Keeps arrays, in the first process."""
        if self.folder is not None and is_first():
            write_arrays(self._file(name), arrays)


class Cache:
    """Arrays by the hash of what they were made from, kept in memory and, where there is one, in a work folder."""

    def __init__(self, workdir: epath.PathLike | None = None) -> None:
        self._workdir = workdir
        self._known: dict[str, np.ndarray] = {}

    def get(self, kind: str, made_from: object, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a kind that was made from `made_from` (JSON), or what `make` gives."""
        key = fingerprint([kind, made_from])
        if key not in self._known:
            store = Store(self._workdir, kind, made_from)
            stored = store.read("array")
            if stored is None:
                stored = {"array": make()}
                store.write("array", stored)
            self._known[key] = stored["array"]
        return self._known[key]
