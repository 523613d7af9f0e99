"""Checkpoint files as `name -> StoredTensor`: the names and shapes at once, the numbers when they are asked for.

Nothing in a file is ever executed. Pickles (`.bin`, `.pt`, `.pth`, TorchScript archives) go through an unpickler that knows
tensors and containers and turns every other class into an inert box; npz refuses pickled objects; sizes are checked against
the file before memory is asked for. Every fault is a UserError that names the file.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict
from regcache_jax.converters import pickles
from regcache_jax.converters.engine import StoredTensor

from regcache_jax.core.errors import UserError

Tensors = dict[str, StoredTensor]

_SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_LARGEST_HEADER = 100 * 2**20  # the safetensors format's own limit
_LARGEST_INDEX = 100 * 2**20  # bytes of JSON or pickle that name tensors; real ones hold well under one MiB


def read_tensors(path: Path) -> Tensors:
    """The tensors of one file, by its ending. Raises UserError for another ending or a file that is not what it says."""
    for ending, reader in READERS.items():
        if path.name.endswith(ending):
            return reader(path)
    raise UserError(f"{path} is not a checkpoint file: its name should end in {', '.join(READERS)}")


def safetensors_file(path: Path) -> Tensors:
    """A `.safetensors` file. Only the header is read now; a header that promises what the file does not hold is refused."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise UserError(
                f"{path} is no safetensors file: it says its header has {length} bytes, the file has {size}"
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is no safetensors file: its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise UserError(f"{path} is no safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    return {name: _safetensors_entry(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _safetensors_entry(path: Path, name: str, entry: Any, data_start: int, size: int) -> StoredTensor:
    try:
        dtype, shape = _SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        well_formed = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    except (KeyError, TypeError, ValueError):
        well_formed = False
    if isinstance(entry, dict) and str(entry.get("dtype")).startswith(("F8_", "F4", "F6_")):
        raise UserError(
            f"{path}: {name[:200]} is of type {entry['dtype']}, which has too few bits to convert from; convert the checkpoint in "
            "float32, float16 or bfloat16 that it was made from"
        )
    if not well_formed:
        raise UserError(
            f"{path}: the header's entry for {name[:200]} is not well formed or of a type that is not known"
        )
    if stop - start != math.prod(shape) * dtype.itemsize or data_start + stop > size:
        raise UserError(
            f"{path} is truncated or damaged: {name[:200]} {list(shape)} should end at byte {data_start + stop} of {size}"
        )

    def read() -> np.ndarray:
        return np.fromfile(path, dtype, math.prod(shape), offset=data_start + start).reshape(shape)

    return StoredTensor(shape, dtype, path.name, read)


def sharded(index: Path) -> Tensors:
    """A checkpoint in several files and the index that names them. Refuses shards that are missing or outside the folder."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{index} is no index of shards: it should hold a weight_map of tensor names to file names")
    outside = sorted({name for name in files.values() if Path(name).name != name})
    if outside:
        raise UserError(f"{index} names files outside its folder, which are not read: {outside[:5]}")
    shards = sorted(set(files.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent} lacks {len(missing)} of {len(shards)} shards that {index.name} names: {missing[:5]}"
        )
    held = {name: read_tensors(index.parent / name) for name in shards}
    absent = sorted(f"{tensor} ({file})" for tensor, file in files.items() if tensor not in held[file])
    if absent:
        raise UserError(f"{index} names {len(absent)} tensors that their shards do not hold: {absent[:5]}")
    return {tensor: held[file][tensor] for tensor, file in files.items()}


def npz_file(path: Path) -> Tensors:
    """A NumPy archive as big_vision writes it (names joined with `/`). bfloat16 leaves, which NumPy stores as two raw bytes,
    are recognised. Pickled objects are refused unread."""
    archive = _open_zip(path)
    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if not members:
        raise UserError(f"{path} is an archive without NumPy arrays")
    return {info.filename.removesuffix(".npy"): _npz_entry(path, archive, info) for info in members}


def _npz_entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> StoredTensor:
    try:
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(member)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {info.filename} is no NumPy array ({error})") from None
    if dtype.hasobject:
        raise UserError(f"{path}: {info.filename} holds pickled Python objects, which are never read")
    if math.prod(shape) * dtype.itemsize > info.file_size:
        raise UserError(f"{path}: {info.filename} says it is {list(shape)} but holds only {info.file_size} bytes")
    is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2

    def read() -> np.ndarray:
        try:
            with archive.open(info) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: {info.filename} cannot be read ({error})") from None
        return array.view(jnp.bfloat16) if is_bfloat16 else array

    return StoredTensor(tuple(shape), np.dtype(jnp.bfloat16) if is_bfloat16 else dtype, path.name, read)


def torch_file(path: Path) -> Tensors:
    """A `.bin`, `.pt` or `.pth` file: a zip archive of raw storages and one pickle that names them, read without torch and
    without running anything; TorchScript archives (OpenAI's) likewise. Files from before torch 1.6 need torch, and are read
    with its `weights_only` loader."""
    if not zipfile.is_zipfile(path):
        return _legacy_torch_file(path)
    archive = _open_zip(path)
    index = next((info for info in archive.infolist() if info.filename.split("/")[1:] == ["data.pkl"]), None)
    if index is None:
        raise UserError(f"{path} is an archive, but not one that torch wrote: it holds no data.pkl")
    if index.file_size > _LARGEST_INDEX:
        raise UserError(f"{path}: data.pkl claims {index.file_size} bytes, too many for a list of tensors")
    root = index.filename.removesuffix("data.pkl")
    members = {info.filename: info for info in archive.infolist()}
    found = pickles.load_tensors(archive.read(index), str(path))
    return {name: _storage_entry(path, archive, members, root, name, view) for name, view in found.items()}


def _storage_entry(
    path: Path,
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    root: str,
    name: str,
    view: pickles.StorageView,
) -> StoredTensor:
    info = members.get(f"{root}data/{view.key}")
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.stride, strict=True))
    count = last + 1 if math.prod(view.shape) else 0
    if info is None or count * view.dtype.itemsize > info.file_size:
        held = "nothing" if info is None else f"{info.file_size} bytes"
        raise UserError(
            f"{path}: {name} {list(view.shape)} needs {count * view.dtype.itemsize} bytes, its storage has {held}"
        )

    def read() -> np.ndarray:
        try:
            with archive.open(info) as member:
                raw = member.read(count * view.dtype.itemsize)
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: {name} cannot be read ({error})") from None
        values = np.frombuffer(raw, view.dtype)[view.offset :]
        strides = [stride * view.dtype.itemsize for stride in view.stride]
        return np.lib.stride_tricks.as_strided(values, view.shape, strides, writeable=False)

    return StoredTensor(view.shape, view.dtype, path.name, read)


def _legacy_torch_file(path: Path) -> Tensors:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is not a zip archive; files from before torch 1.6 need torch: pip install regcache-jax[torch]"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own kinds of error for every kind of damage
        reason = (str(error).splitlines() or ["it is empty or cut off"])[0]
        raise UserError(f"{path} is not a torch file that holds tensors only: {reason}") from None
    named = pickles.named_leaves(state, lambda value: isinstance(value, torch.Tensor))
    if not named:
        raise UserError(f"{path} holds no tensors")
    return {name: _torch_entry(path, tensor) for name, tensor in named.items()}


def _torch_entry(path: Path, tensor: Any) -> StoredTensor:
    import torch

    is_bfloat16 = tensor.dtype == torch.bfloat16
    tensor = tensor.detach()
    array = tensor.view(torch.int16).numpy().view(jnp.bfloat16) if is_bfloat16 else tensor.numpy()
    return StoredTensor(array.shape, array.dtype, path.name, lambda: array)


def msgpack_file(path: Path) -> Tensors:
    """A `flax_model.msgpack` as Hugging Face's Flax models wrote it; names are joined with `/`."""
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises many kinds of error for damaged input
        raise UserError(f"{path} is no Flax msgpack file: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} is no Flax msgpack file: it holds {type(tree).__name__}, not a tree of arrays")
    leaves = flatten_dict(tree, sep="/")
    strange = [name for name, leaf in leaves.items() if not isinstance(leaf, np.ndarray)]
    if strange or not leaves:
        raise UserError(f"{path} is no Flax msgpack file: these are not arrays: {strange[:5]}")
    return {name: _in_memory(path, leaf) for name, leaf in leaves.items()}


def _in_memory(path: Path, array: np.ndarray) -> StoredTensor:
    return StoredTensor(array.shape, array.dtype, path.name, lambda: array)


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Opens an archive whose contents are not larger than a checkpoint of its size can be (a zip bomb is)."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is truncated or no archive ({error})") from None
    unpacked = sum(info.file_size for info in archive.infolist())
    packed = os.path.getsize(path)
    if unpacked > 100 * packed:  # weights hardly compress; a factor of 100 is met by bombs and by zeros only
        raise UserError(f"{path} would unpack from {packed} to {unpacked} bytes; no checkpoint compresses like that")
    return archive


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError that names the file."""
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise UserError(f"{path} has {path.stat().st_size} bytes, too many for a configuration")
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold a JSON object, but holds {type(tree).__name__}")
    return tree


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
