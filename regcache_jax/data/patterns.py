"""Names of several files in one word, as shells and webdataset write them: `{000..123}`, `{a,b}`, `*`, `?` and `[0-9]`."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.files.places import as_path

MOST_FILES = 10_000_000
"""Files that one pattern may name: a slip in a number is no reason to fill the memory."""
THREADS = 16
"""Files that are looked at at a time: a store of objects answers slowly, but many at once."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Found(NamedTuple):
    """A file, its name below the folder that all of them share, and its length."""

    path: epath.Path
    name: str
    size: int


def is_pattern(text: str) -> bool:
    """Whether a word may name several files."""
    return any(each in text for each in "{*?[")


def expanded(pattern: str) -> list[str]:
    """What braces stand for, in order. Raises UserError for braces that are not closed, and for more than MOST_FILES names."""
    names = [pattern]
    while (braces := _BRACES.search(names[0])) is not None:  # all names have the same braces left
        if "{" in names[0][: braces.start()]:
            raise UserError(f"{shown(pattern)} has braces in braces, which are not read")
        choices = _choices(braces[1], pattern)
        if len(names) * len(choices) > MOST_FILES:
            raise UserError(f"{shown(pattern)} names more than {MOST_FILES:,} files")
        names = [
            f"{name[: found.start()]}{choice}{name[found.end() :]}"
            for name in names
            if (found := _BRACES.search(name)) is not None
            for choice in choices
        ]
    if "{" in names[0] or "}" in names[0]:
        raise UserError(f"{shown(pattern)} has braces that do not match; {{000..123}} and {{a,b}} are read")
    return names


def _choices(inside: str, pattern: str) -> list[str]:
    """`000..123`, with as many digits as its beginning has, or words with commas between."""
    if (bounds := _RANGE.fullmatch(inside)) is None:
        return inside.split(",")
    first, last = int(bounds[1]), int(bounds[2])
    if last < first or last - first >= MOST_FILES:
        raise UserError(f"{shown(pattern)}: {{{inside}}} must count up, at most {MOST_FILES:,} numbers")
    return [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]


def files_of(pattern: str) -> list[Found]:
    """The files that a name or a pattern means: braces in their order, stars sorted. Raises UserError for a file that is not there, and
    for a pattern that nothing fits."""
    paths: list[epath.Path] = []
    for name in [pattern] if as_path(pattern).expanduser().exists() else expanded(pattern):
        path = as_path(name).expanduser()
        if not is_pattern(name) or path.exists():
            paths.append(path)
            continue
        fixed = next(number for number, part in enumerate(path.parts) if is_pattern(part))
        found = sorted(as_path(*path.parts[:fixed]).glob("/".join(path.parts[fixed:])))
        if not found:
            raise UserError(f"no file fits {shown(name)}")
        paths += found
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(_size, paths))
    if missing := [path for path, size in zip(paths, sizes, strict=True) if size is None]:
        more = f"; {len(missing):,} of {len(paths):,} files are missing" if len(missing) > 1 else ""
        raise UserError(f"there is no file {shown(missing[0])}{more}")
    above = os.path.commonpath([str(path.parent) for path in paths])
    names = [os.path.relpath(str(path), above) for path in paths]
    return [Found(path, name, size or 0) for path, name, size in zip(paths, names, sizes, strict=True)]


def _size(path: epath.Path) -> int | None:
    return path.stat().length if path.exists() and not path.is_dir() else None
