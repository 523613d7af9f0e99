"""Folders that may lie on a disk or on gs://, where walking them differs."""

from __future__ import annotations

import os

from etils import epath


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
