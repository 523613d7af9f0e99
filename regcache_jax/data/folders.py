"""A folder of pictures as a dataset: what a person sees there, with a class for each folder in it.

Links are followed, as torchvision and timm follow them; entries whose names begin with a point are left out, as file managers leave
them out; what is not read as a picture is counted and said.
"""

from __future__ import annotations

import collections
import os
from typing import NamedTuple

from etils import epath

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError, shown
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.files.bounded import read_text
from regcache_jax.files.paths import files_below
from regcache_jax.files.places import as_path

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}

CAPTIONS_LIMIT = 1 << 20
"""Bytes of the captions of one picture."""
MOST_ENTRIES = 20_000_000
"""Files and folders that a folder may hold: links that lead to links could be walked for ever."""


class Seen(NamedTuple):
    """The files below a folder, sorted, and the folders right in it; `odd`: how many entries are neither, by what they are."""

    files: list[epath.Path]
    folders: list[str]
    odd: collections.Counter[str]


def lines(text: str) -> tuple[str, ...]:
    """The lines of a text that hold something."""
    return tuple(line for each in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if (line := each.strip()))


def look(root: epath.Path) -> Seen:
    """What is seen below a folder. Raises UserError for a folder that cannot be read, a link to a folder that it lies in, and more
    than MOST_ENTRIES."""
    if "://" in str(root):  # a store of objects has no links
        files = [file for file in files_below(root) if not any(part.startswith(".") for part in _parts(file, root))]
        return Seen(
            files,
            sorted({_parts(file, root)[0] for file in files if len(_parts(file, root)) > 1}),
            collections.Counter(),
        )
    found: list[epath.Path] = []
    folders: list[str] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(os.fspath(root), frozenset())]
    odd: collections.Counter[str] = collections.Counter()
    seen = 0
    while waiting:
        folder, above = waiting.pop()
        try:
            own = os.stat(folder)
            if (place := (own.st_dev, own.st_ino)) in above:
                raise UserError(f"{folder} is a link to a folder that it lies in; remove it")
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
            seen += len(entries)
            if seen > MOST_ENTRIES:
                raise UserError(f"{root} holds more than {MOST_ENTRIES:,} files and folders; do links lead in circles?")
            for entry in entries:
                if entry.is_dir():
                    waiting.append((entry.path, above | {place}))
                    folders += [entry.name] if not above else []
                elif entry.is_file():
                    found.append(as_path(entry.path))
                else:
                    odd["links that lead nowhere" if entry.is_symlink() else "devices and pipes"] += 1
        except OSError as error:
            raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    return Seen(sorted(found), sorted(folders), odd)


def _parts(file: epath.Path, root: epath.Path) -> tuple[str, ...]:
    return file.relative_to(root).parts


def class_order(names: set[str]) -> list[str]:
    """The folders of the classes in the order of the classes: by number where all are numbers, else by name."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def folder_dataset(name: str, root: epath.Path, split: str | None) -> Dataset:
    """Pictures under a folder, sorted; where they lie in subfolders, the first folder's name is the class. A text file of
    the same name beside a picture holds its captions, one a line. Raises UserError where there is no picture."""
    seen = look(root)
    files = [file for file in seen.files if file.suffix.lower() in PICTURE_SUFFIXES]
    if not files:
        raise UserError(f"{root} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}){_others(seen, files)}")
    parts = [_parts(file, root) for file in files]
    classes = class_order({each[0] for each in parts if len(each) > 1})
    number = {classname: index for index, classname in enumerate(classes)}
    labels = [number[each[0]] if len(each) > 1 else None for each in parts]
    texts = {file for file in seen.files if file.suffix == ".txt"}

    def captions(index: int) -> tuple[str, ...]:
        beside = files[index].with_suffix(".txt")
        return lines(read_text(beside, CAPTIONS_LIMIT)) if beside in texts else ()

    notes = [f"{root}{others}"] if (others := _others(seen, files)) else []
    if classes and (empty := sorted(set(seen.folders) - set(classes))):
        notes.append(f"{root}: no class without a picture: {shown(', '.join(empty))}")
    if classes and None in labels:
        notes.append(f"{root}: in no folder, and so without a class: {counted(labels.count(None), 'picture')}")
    return Dataset(
        name, split or "all", len(files), lambda index: Example(files[index], labels[index], "/".join(parts[index])),
        tuple(classes) or None, files=files, labels=labels, captions=captions,
        naming=lambda index: "/".join(parts[index]), notes=tuple(notes),
    )  # fmt: skip


def _others(seen: Seen, pictures: list[epath.Path]) -> str:
    """How many files are no pictures, by suffix; captions are not among them."""
    beside = {picture.with_suffix(".txt") for picture in pictures}
    others = [file for file in seen.files if file.suffix.lower() not in PICTURE_SUFFIXES and file not in beside]
    counts = seen.odd + collections.Counter(file.suffix.lower() or "no suffix" for file in others)
    if not counts:
        return ""
    listed = ", ".join(f"{suffix} {count}" for suffix, count in counts.most_common(8))
    return f": not read as pictures: {counted(sum(counts.values()), 'entry')} ({shown(listed)})"
