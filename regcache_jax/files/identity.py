"""What a thing is recognised by: SHA-256 of JSON trees, of arrays, of files and of folders. No other module hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from etils import epath

from regcache_jax.files.bounded import open_in_pieces

PIECE = 1 << 22
"""Bytes that are read and hashed at a time; hashing them lets other threads run."""


class Digest:
    """A SHA-256 that grows by whatever a thing depends on."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def bytes(self, content: Any) -> Digest:
        """Bytes, or any buffer of them."""
        self._sha256.update(content)
        return self

    def text(self, text: str) -> Digest:
        """A text."""
        return self.bytes(text.encode())

    def json(self, tree: object) -> Digest:
        """A JSON tree, whatever the order of its names."""
        return self.text(json.dumps(tree, sort_keys=True))

    def arrays(self, leaves: Iterable[Any]) -> Digest:
        """The bytes of arrays, not copied where they lie in one piece: pictures may be mapped from a file."""
        for leaf in leaves:
            self.bytes(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        return self

    def hex(self) -> str:
        """64 hexadecimal digits."""
        return self._sha256.hexdigest()


def sha256(content: Any) -> str:
    """SHA-256 of bytes."""
    return Digest().bytes(content).hex()


def fingerprint(tree: object) -> str:
    """Short hash of a JSON tree."""
    return Digest().json(tree).hex()[:16]


def content_hash(tree: object) -> str:
    """SHA-256 of all arrays of a tree, their names, types and shapes."""
    digest = Digest()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        shape = array.shape or (1,)  # as earlier versions had it, whose hashes stand in work folders
        digest.text(f"{jax.tree_util.keystr(path)} {array.dtype} {shape}\n").arrays([array])
    return digest.hex()


def file_hash(path: epath.PathLike) -> str:
    """SHA-256 of a file, read in pieces. Raises UserError for what is no regular file."""
    digest = Digest()
    with open_in_pieces(path) as file:
        while piece := file.read(PIECE):
            digest.bytes(piece)
    return digest.hex()


def digest_of(path: epath.Path) -> str | None:
    """SHA-256 of a file, or of all names and contents in a folder; None where there is nothing."""
    if not path.exists():
        return None
    if not path.is_dir():
        return file_hash(path)
    digest = Digest()
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name):
        digest.text(f"{entry.name}\0{digest_of(entry)}\0")
    return digest.hex()
