"""Seals: what is stored carries the SHA-256 of its content, which is compared when it is read.

A folder is sealed by its description (a JSON file): that lists size and hash of every other file, and holds the hash of its own bytes. A
JSON object is sealed by one key. A seal finds what a disk or a copy has changed; who can write may of course seal anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.files.identity import Digest, file_hash, sha256
from regcache_jax.files.paths import files_below

SEAL = "sha256"
"""The key of an object's own hash."""
FILES = "sealed_files"
"""The key of a description under which the other files of its folder are listed: relative path -> [bytes, sha256]."""
_OPEN = "0" * 64  # in place of a hash that is not known yet
_OWN = re.compile(rb'"sha256": "([0-9a-f]{64})"\n}\n\Z')
FAULTS_SHOWN = 3
THREADS = 4


def seal(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its hash, whatever the order of its names."""
    own = {name: value for name, value in tree.items() if name != SEAL}
    return {**own, SEAL: Digest().json(own).hex()}


def is_sealed(tree: Mapping[str, Any]) -> bool:
    """Whether an object is as it was sealed."""
    return tree.get(SEAL) == seal(tree)[SEAL]


def describe_folder(folder: epath.Path, description: Mapping[str, Any]) -> bytes:
    """The description of a folder whose other files are all there, as the bytes to write: with their hashes, and with its own."""
    there = lengths(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(lambda name: file_hash(folder / name), there)
        listed = {name: [length, each] for (name, length), each in zip(there.items(), hashes, strict=True)}
    text = (json.dumps({**description, FILES: listed, SEAL: _OPEN}, indent=2) + "\n").encode()
    return text.replace(_OPEN.encode(), sha256(text).encode())


def check_description(file: epath.Path, content: bytes) -> None:
    """Raises UserError where the bytes of a description are not those that were sealed."""
    found = _OWN.search(content)
    if found is None or found[1].decode() != sha256(
        content[: found.start(1)] + _OPEN.encode() + content[found.end(1) :]
    ):
        raise UserError(f"{shown(file)} is not as it was written (its hash differs): copy or make the folder again")


def check_folder(folder: epath.Path, listed: Mapping[str, tuple[int, str]], own: str) -> None:
    """Compares a folder with what its description (the file `own`) lists, before anything in it is understood.

    Whole files are hashed in threads, so that it costs about a quarter of what reading the parameters costs, and what comes after reads
    from memory. Raises UserError for missing, cut, changed and additional files (but for hidden ones and *.md)."""
    there = lengths(folder)
    faults = wrong_lengths(there, {name: size for name, (size, _) in listed.items()})
    faults += [f"{name} is not its own" for name in sorted(set(there) - set(listed) - {own}) if belongs(name)]
    if not faults:
        with ThreadPoolExecutor(THREADS) as pool:
            hashes = pool.map(lambda name: file_hash(folder / name), listed)
            changed = [name for name, found in zip(listed, hashes, strict=True) if found != listed[name][1]]
        faults = [f"{name} is not as it was written" for name in changed]
    refuse(folder, faults)


def lengths(folder: epath.Path) -> dict[str, int]:
    """The files of a folder, by relative path, and how long they are."""
    return {file.relative_to(folder).as_posix(): file.stat().length for file in files_below(folder)}


def wrong_lengths(there: Mapping[str, int], listed: Mapping[str, int]) -> list[str]:
    """What is missing or cut of the files that are listed."""
    return [
        f"{name} has {there[name]} of {size} bytes" if name in there else f"{name} is missing"
        for name, size in listed.items()
        if there.get(name) != size
    ]


def refuse(folder: epath.Path, faults: list[str]) -> None:
    """Raises UserError where a folder has faults."""
    if faults:
        more = f" and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        shortly = "; ".join(faults[:FAULTS_SHOWN])
        raise UserError(f"{shown(folder)} is damaged or incomplete: {shortly}{more}; copy or make it again")


def belongs(name: str) -> bool:
    """Whether a file that nobody listed may be taken for part of the folder."""
    return not (name.endswith(".md") or any(part.startswith(".") for part in name.split("/")))
