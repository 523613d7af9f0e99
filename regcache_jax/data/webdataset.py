"""Webdataset shards as a dataset: tar files of samples, whose files share a name up to its first point.

A shard is indexed once, by reading headers and classes; nothing is unpacked. What webdataset itself would pass over or guess at is
refused here: a tar file that breaks off, a sample with two pictures, a class that is no number or has no name.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from etils import epath

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError, shown
from regcache_jax.data.annotations import json_captions
from regcache_jax.data.dataset import Dataset, Example, check_label
from regcache_jax.data.folders import CAPTIONS_LIMIT, PICTURE_SUFFIXES, lines
from regcache_jax.data.shards import Place, read
from regcache_jax.files.bounded import decode, open_in_pieces, read_text
from regcache_jax.files.pictures import LARGEST_FILE

PICTURES = tuple(sorted(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES))
LARGEST_CLASS = 1 << 20
"""A class number beyond this is taken for something else."""
CLASS_BYTES = 64
"""Bytes of a .cls file that holds a number."""
BLOCK = 512
"""A tar file is made of blocks of so many bytes; two of zeros end it."""


class Sample(NamedTuple):
    """The files of one sample, by suffix. `name`: its shard and what its files are called; `key`: that with its folder in the shard, as
    webdataset names it. `label`: its class, if it has one."""

    name: str
    key: str
    files: dict[str, Place]
    label: int | None


def index_shards(shards: Sequence[epath.Path]) -> list[Sample]:
    """The samples of all shards, in order. Raises UserError that names the shard, and the file in it."""
    return [sample for shard in shards for sample in _samples(shard)]


def _samples(shard: epath.Path) -> Iterator[Sample]:
    """The samples of a shard: files that lie together."""
    known: set[tuple[str, str]] = set()
    last: tuple[str, str] | None = None
    files: dict[str, Place] = {}
    label: int | None = None
    for member, content in _members(shard):
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        if stem.startswith("__") or any(part.startswith(".") for part in path.parts):
            continue  # what macOS, tar and webdataset keep for themselves
        key, suffix = (str(path.parent), stem), suffix.lower()
        if key != last:
            if files:
                yield _sample(shard, last, files, label)
            if key in known:
                raise UserError(f"{shard}: the files of sample {stem} do not lie together; tar them sorted by name")
            known.add(key)
            last, files, label = key, {}, None
        if suffix in files:
            raise UserError(f"{shard}: sample {stem} has two files .{suffix}")
        files[suffix] = Place(str(shard), member.offset_data, member.size)
        label = _class(content, f"{shard}: {member.name}") if content is not None else label
    if files:
        yield _sample(shard, last, files, label)


def _sample(shard: epath.Path, key: tuple[str, str] | None, files: dict[str, Place], label: int | None) -> Sample:
    folder, stem = key or ("", "")
    return Sample(f"{shard}: {stem}", str(PurePosixPath(folder) / stem), files, label)


def _members(shard: epath.Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """The files of a shard, and the content of those that hold a class. Raises UserError for what is no whole tar file."""
    with open_in_pieces(shard) as raw:
        try:
            with tarfile.open(fileobj=raw, mode="r:") as archive:
                for member in archive:
                    if member.islnk() or member.issym() or member.issparse() or not (member.isfile() or member.isdir()):
                        raise UserError(
                            f"{shard}: {member.name} is no plain file (a link, say); tar the files themselves"
                        )
                    if member.isfile():
                        yield member, _content(archive, member)
                end = archive.offset
        except UserError:
            raise
        except Exception as error:  # a damaged header ends tarfile in many ways
            raise UserError(f"{shard} is not an uncompressed tar shard: {error}") from None
        _check_end(raw, shard, end)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    if not member.name.lower().endswith(".cls"):
        return None
    file = archive.extractfile(member)
    assert file is not None  # it is a regular one
    return file.read(CLASS_BYTES + 1)


def _check_end(raw: BinaryIO, shard: epath.Path, end: int) -> None:
    """tarfile stops without a word at a damaged header and at the end of the first of two tar files that were joined."""
    raw.seek(end)
    if raw.read(BLOCK) != bytes(BLOCK):
        raise UserError(f"{shard} is not a whole tar shard: it breaks off or is damaged at byte {end}")
    while rest := raw.read(1 << 20):
        if rest.count(0) < len(rest):
            raise UserError(f"{shard} holds more after its end at byte {end}: are these several tar files in one?")


def _class(content: bytes, where: str) -> int:
    """The number in a .cls file. Raises UserError for anything else."""
    if not re.fullmatch(rb"\s*[0-9]{1,18}\s*", content):
        raise UserError(f"{where} must hold the number of a class, got {shown(content[:CLASS_BYTES], 80)}")
    if (number := int(content)) > LARGEST_CLASS:
        raise UserError(f"{where} is of class {number}; that is no class")
    return number


def webdataset(name: str, root: epath.Path, split: str) -> Dataset:
    """Tar shards as CLIP_benchmark lays them out: SPLIT/0.tar ..., with .cls (a number) or .txt (captions) beside every
    picture, or .json with `caption` or `captions`, and classnames.txt (line i names class i, from 0 on) and
    zeroshot_classification_templates.txt in the dataset's folder. Raises UserError for anything else."""
    shards = sorted(root.glob("[!.]*.tar"), key=lambda file: (len(file.name), file.name))
    if not shards:
        raise UserError(f"{root} holds no .tar shards")
    names, words = _list(root.parent / "classnames.txt"), _list(root.parent / "zeroshot_classification_templates.txt")
    templates = None if words is None else tuple(filter(None, words))
    return shards_dataset(shards, (name, split), str(root), names, templates)


def shards_dataset(
    shards: Sequence[epath.Path],
    called: tuple[str, str],
    where: str,
    names: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    prefix: str | None = None,
) -> Dataset:
    """The samples of some shards, in order. `called`: name and split of the dataset; `where`: the shards, in messages; `prefix`: what
    stands before the keys of samples in their names, which are numbers otherwise."""
    name, split = called
    every = index_shards(shards)
    for sample in every:
        if len(pictures := [suffix for suffix in sample.files if suffix in PICTURES]) > 1:
            raise UserError(f"{sample.name} has several pictures ({', '.join(pictures)}); one a sample is read")
        if sample.label is not None and names is not None:
            check_label(sample.label, len(names), f"{sample.name}.cls")
    samples = [sample for sample in every if set(PICTURES) & set(sample.files)]
    if not samples:
        found = sorted({suffix for sample in every for suffix in sample.files})
        raise UserError(
            f"{where}: the shards hold no pictures ({', '.join(PICTURES)}); the suffixes there are {shown(', '.join(found))}"
        )

    def get(index: int) -> Example:
        sample = samples[index]
        suffix = next(suffix for suffix in sample.files if suffix in PICTURES)
        return Example(read(sample.files[suffix], LARGEST_FILE), sample.label, naming(index))

    def naming(index: int) -> str:
        return f"{name}/{split}/{index}" if prefix is None else f"{prefix}/{samples[index].key}"

    def captions(index: int) -> tuple[str, ...]:
        sample = samples[index]
        held = {
            suffix: read(sample.files[suffix], CAPTIONS_LIMIT) for suffix in ("txt", "json") if suffix in sample.files
        }
        texts = lines(decode(held["txt"], f"{sample.name}.txt")) if "txt" in held else ()
        return texts or (json_captions(held["json"], f"{sample.name}.json") if "json" in held else ())

    left_out = len(every) - len(samples)
    notes = (
        (f"{where}: left out, as without a picture: {left_out:,} of {counted(len(every), 'sample')}",)
        if left_out
        else ()
    )
    return Dataset(
        name, split, len(samples), get, names, templates, files=shards, labels=[sample.label for sample in samples],
        captions=captions, naming=naming, notes=notes,
    )  # fmt: skip


def _list(file: epath.Path) -> tuple[str, ...] | None:
    """The lines of a file, blank ones too, as the number of a line is that of a class; None where there is no file."""
    if not file.exists():
        return None
    text = read_text(file).replace("\r\n", "\n").replace("\r", "\n").rstrip()
    return tuple(line.strip() for line in text.split("\n"))
