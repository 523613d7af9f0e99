"""What a thing is recognised by: hashes of JSON trees, of trees of arrays, of files and of folders."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import numpy as np
from etils import epath


def fingerprint(tree: Any) -> str:
    """Short hash of a JSON tree."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def content_hash(tree: Any) -> str:
    """SHA-256 of all arrays of a tree, their names, types and shapes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def digest_of(path: epath.Path) -> str | None:
    """SHA-256 of a file, or of all names and contents in a folder; None where there is nothing."""
    if not path.exists():
        return None
    digest = hashlib.sha256()
    if not path.is_dir():
        digest.update(path.read_bytes())
        return digest.hexdigest()
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name):
        digest.update(f"{entry.name}\0{digest_of(entry)}\0".encode())
    return digest.hexdigest()
