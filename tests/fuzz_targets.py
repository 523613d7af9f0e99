"""A reader that damaged files are tried on: its sound files, how one is changed, and what reads it.

A target is made in an empty folder, where it may write its sound files with the project's own writers."""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from mutations import mutate


class Target(NamedTuple):
    """A reader of a folder, its sound files, and how one of them is changed.

    `changed`: patterns of those that are. `right`: of what is sealed, whether what was read is what was written; of other files nobody
    can say. `share`: how many of the changes that are asked for are tried, of readers that take long."""

    files: dict[str, bytes]
    changed: tuple[str, ...]
    read: Callable[[Path], Any]
    change: Callable[[bytes, random.Random], bytes]
    right: Callable[[Any], bool] | None = None
    share: float = 1.0

    def names(self) -> list[str]:
        """The files that are changed."""
        return sorted(name for name in self.files if any(fnmatch.fnmatch(name, pattern) for pattern in self.changed))


Make = Callable[[Path], Target]


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies in a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def same(found: Any, wanted: Any) -> bool:
    """Whether two trees of arrays, texts and numbers are equal."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return False
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in pairs)


def sealed(folder: Path, reader: Callable[[Path], Any], **how: Any) -> Target:
    """A target of what carries its hash: whatever is read must be what was written."""
    files, wanted = files_of(folder), reader(folder)
    usual = {"changed": ("*",), "change": mutate, "right": lambda found: same(found, wanted)}
    return Target(files, read=reader, **{**usual, **how})
