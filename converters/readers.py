"""Checkpoint files as `name -> StoredTensor`: the names and shapes at once, the numbers when they are asked for.

Nothing in a file is ever executed, and what it says of itself is compared with its bytes before memory is asked for. Whatever a
library raises on the way becomes one UserError: the file, the place in it, the fault. docs/threat_model.md lists the bounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
from regcache_jax.converters.engine import StoredTensor
from regcache_jax.converters.numpy_file import npz_file
from regcache_jax.converters.stored import LARGEST_FILE, Tensors, check_list, in_one_line
from regcache_jax.converters.torch_file import torch_file

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError, shown
from regcache_jax.files.bounded import length, open_regular, parse_json, read_bytes, read_json
from regcache_jax.files.tensors import HEADER_LIMIT

_SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
Wanted = Callable[[str], bool]
"""Whether a tensor of this name is asked for."""
_LARGEST_MSGPACK = 1 << 34  # bytes: the whole file is in memory
_DEEPEST = 64  # objects inside objects of a msgpack


def read_tensors(path: Path, wanted: Wanted | None = None) -> Tensors:
    """The tensors of one file, by its ending, or those whose names are `wanted`: shards that hold none of them are not opened.

    Raises UserError for another ending or a file that is not what it says."""
    for ending, reader in READERS.items():
        if path.name.endswith(ending):
            tensors = sharded(path, wanted) if reader is sharded else reader(path)
            return check_list(path, {name: each for name, each in tensors.items() if wanted is None or wanted(name)})
    raise UserError(f"{path} is not a checkpoint file: its name should end in {', '.join(READERS)}")


def safetensors_file(path: Path) -> Tensors:
    """A `.safetensors` file. Only the header is read now; a header that promises what the file does not hold is refused."""
    with open_regular(path, LARGEST_FILE) as file, in_one_line(path, "is no safetensors file"):
        size = length(file)
        header_size = int.from_bytes(file.read(8), "little")
        if not 2 <= header_size <= size - 8 or header_size > HEADER_LIMIT:
            raise UserError(
                f"{path} is no safetensors file: it says its header has {header_size} bytes (of {size}; at most {HEADER_LIMIT})"
            )
        header = file.read(header_size)
    entries = parse_json(header, dict[str, dict[str, Any]], f"{path} is no safetensors file: its header")
    entries.pop("__metadata__", None)
    spans = {name: _safetensors_entry(path, name, entry) for name, entry in entries.items()}
    end = 0
    for name, (start, stop, dtype, shape) in sorted(spans.items(), key=lambda item: item[1][:2]):
        if stop - start != math.prod(shape) * dtype.itemsize or 8 + header_size + stop > size:
            raise UserError(
                f"{path} is truncated or damaged: {shown(name)} {list(shape)} should end at byte {8 + header_size + stop} of {size}"
            )
        if start != end:
            where = "begins inside the tensor before it" if start < end else "leaves a hole before it"
            raise UserError(f"{path}: {shown(name)} {where} (byte {start}, the one before ends at {end})")
        end = stop
    if 8 + header_size + end != size:
        raise UserError(f"{path} is damaged: its tensors end at byte {8 + header_size + end}, the file at {size}")

    def reading(name: str, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with in_one_line(path, f"has changed while it was read: {shown(name)}"):
                return np.fromfile(path, dtype, math.prod(shape), offset=8 + header_size + start).reshape(shape)

        return read

    return {
        name: StoredTensor(shape, dtype, path.name, reading(name, start, dtype, shape))
        for name, (start, _, dtype, shape) in spans.items()
    }


def _safetensors_entry(path: Path, name: str, entry: dict[str, Any]) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    """Begin and end in bytes, type and shape."""
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if str(kind).startswith(("F8_", "F4", "F6_")):
        raise UserError(
            f"{path}: {shown(name)} is of type {shown(kind)}, which has too few bits to convert from; convert the checkpoint in "
            "float32, float16 or bfloat16 that it was made from"
        )
    match kind, shape, offsets:
        case str(), list(), [begin, end] if kind in _SAFETENSORS_DTYPES:
            if all(type(number) is int and 0 <= number <= LARGEST_FILE for number in (*shape, begin, end)):
                return begin, end, _SAFETENSORS_DTYPES[kind], tuple(shape)
    raise UserError(
        f"{path}: the header's entry for {shown(name)} is not well formed or of a type that is not known: {shown(entry)}"
    )


@dataclasses.dataclass
class _Index:
    """`model.safetensors.index.json`: which shard holds which tensor."""

    weight_map: dict[str, str]


def weight_map(index: Path) -> dict[str, str]:
    """Which shard holds which tensor."""
    return read_json(index, _Index).weight_map


def sharded(index: Path, wanted: Wanted | None = None) -> Tensors:
    """A checkpoint in several files and the index that names them; of tensors that are not `wanted` nothing need be there. Refuses
    shards that are missing, left over, outside the folder or of another kind, and tensors that are not where the index says, or in two
    shards."""
    places = weight_map(index)
    files = {tensor: file for tensor, file in places.items() if wanted is None or wanted(tensor)}
    shards = sorted(set(files.values()))
    ending = Path(index.name.removesuffix(".index.json")).suffix
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise UserError(f"{index} names files outside its folder, which are not read: {shown(outside[:5])}")
    other = [name for name in shards if Path(name).suffix != ending or ending not in READERS]
    if other:
        raise UserError(f"{index} names files that are no {ending or 'checkpoint'} shards: {shown(other[:5])}")
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent} lacks {len(missing)} of {len(shards)} shards that {index.name} names: {shown(missing[:5])}"
        )
    stem = index.name.removesuffix(f"{ending}.index.json")
    left_over = sorted({file.name for file in index.parent.glob(f"{stem}-*-of-*{ending}")} - set(places.values()))
    if left_over:
        raise UserError(f"{index.parent} has shards that {index.name} does not name: {shown(left_over[:5])}")
    held = {name: read_tensors(index.parent / name) for name in shards}
    absent = sorted(f"{tensor} ({file})" for tensor, file in files.items() if tensor not in held[file])
    if absent:
        raise UserError(f"{index} names {counted(len(absent), 'tensor')} that no shard holds: {shown(absent[:5])}")
    unnamed = sorted(
        f"{tensor} ({file})" for file, tensors in held.items() for tensor in tensors if places.get(tensor) != file
    )
    if unnamed:
        raise UserError(
            f"{index} places {counted(len(unnamed), 'tensor')} elsewhere or not at all: {shown(unnamed[:5])}"
        )
    return {tensor: held[file][tensor] for tensor, file in files.items()}


def msgpack_file(path: Path) -> Tensors:
    """A `flax_model.msgpack` as Hugging Face's Flax models wrote it; names are joined with `/`."""
    content = read_bytes(path, _LARGEST_MSGPACK)
    with in_one_line(path, "is no Flax msgpack file"):
        # lists are made as long as they say, so their length is bounded; a map grows by what it holds
        tree = msgpack.unpackb(content, ext_hook=_flax_array, strict_map_key=True, max_array_len=LARGEST_LIST)
        if not isinstance(tree, dict):
            raise UserError(f"{path} is no Flax msgpack file: it holds {type(tree).__name__}, not a tree of arrays")
        leaves = dict(_leaves(tree))
        if not leaves:
            raise UserError(f"{path} is no Flax msgpack file: it holds no arrays")
    return {name: _in_memory(path, leaf) for name, leaf in leaves.items()}


LARGEST_LIST = 64
_ARRAY = 1  # Flax's number of its extension for arrays


def _flax_array(code: int, data: bytes) -> np.ndarray:
    """An array as Flax packs it: (shape, name of its type, bytes)."""
    shape, name, content = msgpack.unpackb(data, max_array_len=LARGEST_LIST) if code == _ARRAY else (None, None, None)
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise UserError(f"an extension of type {code} is no array with a shape")
    dtype = np.dtype(jnp.bfloat16) if name == "bfloat16" else np.dtype(str(name))
    if not isinstance(content, bytes) or (dtype.kind not in "fiub" and name != "bfloat16") or dtype.shape:
        raise UserError(f"an array is of type {shown(name)}, which holds no plain numbers")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise UserError(f"an array says it is {shown(shape)} of {dtype}, but holds {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape)


def _leaves(node: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a tree, by name. Flax cuts those above 1 GiB in chunks."""
    if isinstance(node, np.ndarray):
        yield path, node
    elif isinstance(node, dict) and (wrong := [name for name in node if not isinstance(name, str)]):
        raise UserError(
            f"the name {shown(wrong[0])} in {shown(path) or 'the tree'} is {type(wrong[0]).__name__}, expected text"
        )
    elif not isinstance(node, dict) or depth > _DEEPEST:
        raise UserError(
            f"{shown(path)} is {type(node).__name__}; expected arrays, in at most {_DEEPEST} objects with names"
        )
    elif "__msgpack_chunked_array__" in node:
        chunks = [chunk for _, chunk in _leaves(node["chunks"], path, depth + 1)]
        yield path, np.concatenate(chunks).reshape([node["shape"][str(axis)] for axis in range(len(node["shape"]))])
    else:
        for name, child in node.items():
            yield from _leaves(child, f"{path}/{name}" if path else name, depth + 1)


def _in_memory(path: Path, array: np.ndarray) -> StoredTensor:
    return StoredTensor(array.shape, array.dtype, path.name, lambda: array)


READERS: dict[str, Callable[[Path], Tensors]] = {
    ".safetensors": safetensors_file,
    ".index.json": sharded,
    ".npz": npz_file,
    ".msgpack": msgpack_file,
    ".bin": torch_file,
    ".pt": torch_file,
    ".pth": torch_file,
    ".pth.tar": torch_file,
    ".ckpt": torch_file,
}
