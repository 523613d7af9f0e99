"""Arrays and a few texts about them in one safetensors file, with the hash of all of it: what plans and calibrations are kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.files.bounded import parse_json, read_bytes
from regcache_jax.files.identity import Digest, content_hash
from regcache_jax.files.paths import write_whole
from regcache_jax.files.sealed import SEAL

LIMIT = 1 << 30
"""Bytes of such a file."""
HEADER_LIMIT = 1 << 24
"""Bytes of its header."""


def write_tensors(path: epath.PathLike, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
    """Writes a file, whole or not at all; the same bytes for the same content."""
    content = safetensors.numpy.save(dict(arrays), {**texts, SEAL: _hash(arrays, texts)})
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # it has an order of its own every time
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    ordered = ordered.ljust(-(-len(ordered) // 8) * 8)  # arrays begin at a multiple of eight
    write_whole(path, len(ordered).to_bytes(8, "little") + ordered + content[8 + size :])


def read_tensors(path: epath.PathLike, kind: str, known: set[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and texts. `kind` names the file in messages, `known` are the names that texts may have. A file without a hash (version
    0.1.0) is taken as it is. Raises UserError for what is no such file, or not as it was written."""
    content = read_bytes(path, LIMIT)
    try:
        arrays = safetensors.numpy.load(content)
    except (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:  # the last three: types NumPy lacks
        raise UserError(f"{shown(path)} is not a readable {kind}: {shown(error)}") from None
    size = int.from_bytes(content[:8], "little")
    if size > HEADER_LIMIT:
        raise UserError(
            f"{shown(path)} is not a readable {kind}: its header has {size:,} bytes, at most {HEADER_LIMIT:,} are read"
        )
    header = parse_json(content[8 : 8 + size], dict[str, object], path)
    texts = parse_json(json.dumps(header.get("__metadata__", {})), dict[str, str], path)
    if unknown := set(texts) - known - {SEAL, "format"}:
        raise UserError(f"{shown(path)} is not a {kind}: its metadata have the unknown names {shown(sorted(unknown))}")
    told = texts.pop(SEAL, None)
    if told is not None and told != _hash(arrays, texts):
        raise UserError(f"{shown(path)} is not as it was written (its hash differs): copy or make it again")
    return arrays, texts


def _hash(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> str:
    return Digest().text(content_hash(dict(sorted(arrays.items())))).json(dict(texts)).hex()
