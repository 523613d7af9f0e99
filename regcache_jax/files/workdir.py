"""A work folder: stages whose results are kept, beside hashes of what they were made from and of the files they made.

A stage's record is written last, and removed before the stage runs again; so a record that is there speaks of whole files, and
a run that is killed at any time goes on where it stopped. Records and files that were damaged since are made again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.core.observer import Observer
from regcache_jax.files import distributed
from regcache_jax.files.bounded import read_json
from regcache_jax.files.identity import digest_of, fingerprint
from regcache_jax.files.paths import files_below, remove, size_and_time, sweep, write_json, write_whole
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import is_sealed, seal

Json = dict[str, Any]


class Stage(NamedTuple):
    """A stage's result, and the hash of what it was made from, for the stages that build on it."""

    result: Json
    made_from: str


class Workdir:
    """A work folder; paths in it may be on gs:// or wherever else `etils.epath` reaches.

    Whoever works in it holds it (`lock`); what a killed run left half-written is removed."""

    def __init__(self, path: epath.PathLike, observer: Observer) -> None:
        self.path, self.observer = as_path(path), observer
        distributed.from_first(lambda: sweep(self.path))

    def stage(
        self,
        name: str,
        made_from: object,
        make: Callable[[], Json],
        files: Sequence[str] = (),
        *,
        together: bool = False,
    ) -> Stage:
        """The result of `make`, or its record where that was made from the same things by the same version and the `files` and
        folders (relative to the work folder) it made are still as they were. Old files are removed before `make` runs.

        With several processes the first alone decides, makes and writes, and the others are handed the result; `together`: all
        of them run `make`, for the devices of all."""
        record = self.path / "stages" / f"{name}.json"

        def kept() -> Json:
            digest = self.digest(name, made_from)
            stored = self._read(record)
            same = stored.get("made_from") == digest and stored.get("files") == self._digests(files)
            return {"made_from": digest, "result": stored["result"] if same else None}

        found = distributed.from_first(kept)
        if found["result"] is not None:
            self.observer.skipped(name)
            return Stage(found["result"], found["made_from"])
        self.observer.started(name)

        def clear() -> None:
            record.unlink(missing_ok=True)
            for file in files:
                remove(self.path / file)

        def made(result: Json) -> Json:
            write_json(record, seal({"made_from": found["made_from"], "files": self._digests(files), "result": result}))
            return result

        if together:
            distributed.from_first(clear)
            result = make()
            return Stage(distributed.from_first(lambda: made(result)), found["made_from"])

        def make_alone() -> Json:
            clear()
            return made(make())

        return Stage(distributed.from_first(make_alone), found["made_from"])

    def digest(self, name: str, made_from: object) -> str:
        """The hash that names what a stage was made from."""
        return fingerprint([name, made_from, metadata.version("regcache-jax")])

    def _digests(self, files: Sequence[str]) -> dict[str, str | None]:
        return {file: digest_of(self.path / file) for file in files}

    def _read(self, record: epath.Path) -> Json:
        """A record, or nothing where there is none that is as it was written."""
        try:
            stored = read_json(record, dict[str, Any])
        except UserError:
            return {}
        return stored if is_sealed(stored) and "result" in stored else {}


def listing(path: epath.PathLike) -> list[tuple[str, int, float]]:
    """What a user's file or folder is recognised by without reading it: name, size and time of every file, sorted by name;
    nothing for a path that is not there (a name on a hub)."""
    root = as_path(path).expanduser()
    files = files_below(root) if root.is_dir() else [root] if root.exists() else []
    return [(file.relative_to(root).as_posix(), *size_and_time(file)) for file in files]


def write_array(path: epath.Path, array: np.ndarray) -> None:
    """Writes an .npy whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_whole(path, buffer.getvalue())


def read_array(path: epath.Path) -> np.ndarray:
    """Reads an .npy."""
    return np.load(io.BytesIO(path.read_bytes()))
