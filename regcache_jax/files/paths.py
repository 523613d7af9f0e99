"""Files and folders that may lie on a disk or on gs://: walking them, and writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import time
import uuid
from collections.abc import Iterator

from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.files.lock import held
from regcache_jax.files.places import as_path


def refuse_existing(path: epath.PathLike) -> None:
    """Raises UserError where something lies already: what was made is never written over."""
    if as_path(path).exists():
        raise UserError(f"{path} exists already; choose another name or remove it first")


def files_below(root: epath.Path) -> list[epath.Path]:
    """All files in a folder and its folders, sorted.

    On gs:// a walk names its folders without their scheme; so they are taken relative to the first one, which is the root."""
    found: list[epath.Path] = []
    top: epath.Path | None = None
    for folder, _, names in root.walk():
        top = folder if top is None else top
        inside = root / os.path.relpath(str(folder), str(top))
        found += [(root if folder == top else inside) / name for name in names]
    return sorted(found)


def size_and_time(file: epath.Path) -> tuple[int, float]:
    """What a file is recognised by without reading it: its length, and when it was written last (to the nanosecond on a disk,
    elsewhere as well as it is known)."""
    if "://" in str(file):
        stat = file.stat()
        return stat.length, stat.mtime
    local = os.stat(file)
    return local.st_size, local.st_mtime_ns


def write_whole(path: epath.PathLike, content: bytes | mmap.mmap) -> None:
    """Writes a file beside its final name and renames it, so that nothing half-written is ever found; makes the folders it lies in.

    Returns when disk and folder hold it. Raises OSError that names the file."""
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in str(path):  # a store of objects writes an object whole or not at all
        path.write_bytes(content[:])
        return
    try:
        with _partial(path) as (partial, handle):
            written = 0
            while written < len(content):
                written += os.write(handle, memoryview(content)[written:])
            os.fsync(handle)
            os.replace(partial, path)
        drain(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_json(path: epath.PathLike, tree: object) -> None:
    """Writes a tree of JSON, whole or not at all. Raises ValueError for NaN and infinities."""
    write_whole(path, (json.dumps(tree, indent=2, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def _partial(path: epath.Path) -> Iterator[tuple[str, int]]:
    """An empty file `.NAME.partial` that is this writer's while the block runs: its name and its handle. What a killed writer left under
    the name is written over, a living one is waited for. It is gone when the block ends, unless it was renamed."""
    partial = str(path.with_name(f".{path.name}.partial"))
    while True:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(handle), os.stat(partial)):
                break
        except FileNotFoundError:
            pass
        os.close(handle)  # the other writer has renamed it
    try:
        os.ftruncate(handle, 0)
        yield partial, handle
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """A hidden folder beside `path` to write into; it gets the name when the block has ended and the disk holds all of it, and is removed
    when the block fails. What a killed run left of such folders is removed.

    Raises UserError where the name is taken, and where another process is making it."""
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path):
        refuse_existing(path)
        for entry in path.parent.iterdir():
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(".tmp"):
                remove(entry)
        beside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            beside.mkdir()
            yield beside
            _drain_all(beside)
            beside.rename(path)
            drain(path.parent)
        except BaseException:
            _give_up(beside)
            raise


def _give_up(folder: epath.Path) -> None:
    """Removes what could not be finished. TensorStore's threads may write into it for a moment longer, and why it failed is to be told,
    not that; what stays after a second is removed by the next run."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            folder.rmtree(missing_ok=True)
            return
        time.sleep(0.05)


def _drain_all(folder: epath.Path) -> None:
    if "://" not in str(folder):
        for below, _, names in os.walk(folder, topdown=False):
            for name in names:
                drain(os.path.join(below, name))
            drain(below)


def drain(path: epath.PathLike) -> None:
    """Returns when the disk holds a file, or the names in a folder. A store of objects needs no such care."""
    if "://" in str(path):
        return
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(path: epath.Path) -> None:
    """Removes the files and folders, in a folder and those inside it, that were being written when a run was killed. For whoever holds the
    folder; a file that another process is writing at this moment is spared."""
    for leftover in _leftovers(path):
        if not _being_written(leftover):
            remove(leftover)


def _leftovers(path: epath.Path) -> list[epath.Path]:
    if not path.is_dir():
        return []
    entries = list(path.iterdir())
    folders = [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    entries += [entry for folder in folders for entry in folder.iterdir()]
    return [entry for entry in entries if entry.name.startswith(".") and entry.name.endswith((".partial", ".tmp"))]


def _being_written(path: epath.Path) -> bool:
    if "://" in str(path) or path.is_dir():
        return False
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def remove(path: epath.Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink(missing_ok=True)
