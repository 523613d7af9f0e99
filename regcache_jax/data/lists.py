"""A text file of paths, a line a picture, as datasets of so many lines each; the file may be larger than memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.files.bounded import decode, open_in_pieces
from regcache_jax.files.identity import sha256

LONGEST_PATH = 1 << 16
"""Bytes of a line; more is no list of paths."""


class Lines(NamedTuple):
    """Some lines of a file: where they lie, how many hold something, and the hash of their bytes."""

    offset: int
    size: int
    pictures: int
    sha256: str


def cut_lines(file: epath.Path, size: int) -> list[Lines]:
    """A text file cut after every `size` lines that hold something. Raises UserError for a file without any, and for one with a line
    of more than LONGEST_PATH bytes."""
    parts: list[Lines] = []
    lines: list[bytes] = []
    offset = count = 0
    with open_in_pieces(file) as raw:
        while line := raw.readline(LONGEST_PATH + 1):
            if len(line) > LONGEST_PATH:
                raise UserError(f"{file} has a line of more than {LONGEST_PATH:,} bytes; it must hold one path a line")
            lines.append(line)
            count += bool(line.strip())
            if count == size:
                parts.append(_part(offset, lines, count))
                offset, count, lines = offset + parts[-1].size, 0, []
    if count:
        parts.append(_part(offset, lines, count))
    if not parts:
        raise UserError(f"{file} names no pictures; it must hold one path a line")
    return parts


def _part(offset: int, lines: list[bytes], count: int) -> Lines:
    content = b"".join(lines)
    return Lines(offset, len(content), count, sha256(content))


def listed_dataset(file: epath.Path, part: Lines) -> Dataset:
    """The pictures of some lines, called as they stand there; relative paths are meant from the list's folder. Raises UserError where the
    list is another by now."""
    with open_in_pieces(file) as raw:
        raw.seek(part.offset)
        content = raw.read(part.size)
    if sha256(content) != part.sha256:
        raise UserError(f"{file} is not what it was when the run began; leave it as it is until its end")
    names = [line.strip() for line in decode(content, file).split("\n") if line.strip()]
    above = file.parent
    return Dataset(file.name, "all", len(names), functools.partial(_example, names, above), naming=names.__getitem__)


def _example(names: list[str], above: epath.Path, index: int) -> Example:
    name = names[index]
    return Example(name if "://" in name else str(above / name), None, name)
