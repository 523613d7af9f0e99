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


def changed(file: epath.Path) -> float:
    """When a file was written last: to the nanosecond on a disk, elsewhere as well as it is known."""
    return file.stat().mtime if "://" in str(file) else os.stat(file).st_mtime_ns
