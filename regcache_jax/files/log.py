"""An appended log: what takes long to find out, one JSON line a thing, kept as it is found and read again by a run that goes on.

The first line says what the log belongs to; every line carries its hash. What a kill or a disk has spoilt is dropped with all that
follows, and found out again. One process at a time has a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import weakref
from typing import Any, Generic, TypeVar

from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.files.bounded import TEXT_LIMIT, parse_json, read_bytes
from regcache_jax.files.lock import held
from regcache_jax.files.paths import write_whole
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import SEAL, seal

T = TypeVar("T")
_DIGITS = 16  # of a line's hash: it finds faults, not forgeries


class Log(Generic[T]):
    """Lines of JSON objects in memory and, where a path is given, in a file that survives a kill. `kind` names the file in messages.

    `rows` are the objects that were read, as `schema` has them. Raises UserError for a file that belongs to something else, is no such
    log or is in use."""

    def __init__(self, path: epath.PathLike | None, belongs_to: dict[str, Any], schema: type[T], kind: str) -> None:
        self.path = None if path is None else as_path(path)
        self.rows: list[T] = []
        header = _line(belongs_to)
        self._lines = [header]
        if self.path is None:
            return
        with contextlib.ExitStack() as holding:
            holding.enter_context(held(self.path))
            self._read(header, schema, kind)
            self.close = weakref.finalize(self, holding.pop_all().close)

    def _read(self, header: bytes, schema: type[T], kind: str) -> None:
        """Takes over the lines of the file that are whole, and leaves the file with those."""
        assert self.path is not None
        content = read_bytes(self.path, TEXT_LIMIT) if self.path.exists() else b""
        first, *rest = content.splitlines(keepends=True) or [b""]
        if first != header and not header.startswith(first):
            why = (
                f"belongs to another {kind}"
                if _is_whole(first)
                else f"is no log of a {kind}: its first line is {shown(first[:60])}"
            )
            raise UserError(f"{shown(self.path)} {why}; remove it or take another name")
        for line in rest:
            if not _is_whole(line):
                break
            try:
                row = parse_json(line, schema, self.path)
            except UserError:
                break
            self._lines.append(line)
            self.rows.append(row)
        if b"".join(self._lines) != content:
            write_whole(self.path, b"".join(self._lines))

    def append(self, row: T) -> None:
        """Adds an object; returns when the disk holds its line."""
        self.rows.append(row)
        self._lines.append(_line(row))
        if self.path is None:
            return
        if "://" in str(self.path):  # a store of objects cannot append, but writes an object whole or not at all
            write_whole(self.path, b"".join(self._lines))
            return
        with self.path.open("ab") as file:
            file.write(self._lines[-1])
            file.flush()
            os.fsync(file.fileno())


def _line(row: Any) -> bytes:
    sealed = seal(row)
    return (json.dumps({**sealed, SEAL: sealed[SEAL][:_DIGITS]}) + "\n").encode()


def _is_whole(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and line.endswith(b"\n") and line == _line(row)
