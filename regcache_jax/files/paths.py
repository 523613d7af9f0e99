"""Files and folders that may lie on a disk or on gs://: walking them, and writing a file whole or not at all."""

from __future__ import annotations

import os
import uuid

from etils import epath

from regcache_jax.core.errors import UserError


def refuse_existing(path: epath.PathLike) -> None:
    """Raises UserError where something lies already: what was made is never written over."""
    if epath.Path(path).exists():
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


def write_whole(path: epath.PathLike, content: bytes) -> None:
    """Writes a file beside its final name and renames it, so that nothing half-written is ever found; makes the folders it lies in.

    Raises OSError that names the file."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
