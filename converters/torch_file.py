"""torch's files (`.bin`, `.pt`, `.pth`, `.ckpt`), read without torch and without running anything.

Since torch 1.6: a zip archive of raw storages and one pickle that names them (TorchScript archives, OpenAI's, likewise). Before: four
short pickles, the one that names the storages, a list of their keys, and each storage behind its length.
"""

from __future__ import annotations

import functools
import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from regcache_jax.converters.archive import Archive
from regcache_jax.converters.described import Storage, StorageView, named_tensors
from regcache_jax.converters.engine import StoredTensor
from regcache_jax.converters.pickles import describe
from regcache_jax.converters.stored import LARGEST_FILE, Tensors, in_one_line, num_bytes

from regcache_jax.core.errors import UserError, shown
from regcache_jax.files.bounded import length, open_regular

_LARGEST_PICKLE = 1 << 26  # bytes; real ones have well under one MiB
_LARGEST_SHARE = 4  # times the bytes of a file: tensors may share a storage (tied weights, averaged ones not yet apart)
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
Storages = Callable[[Storage], np.ndarray]


def torch_file(path: Path) -> Tensors:
    """The tensors of a torch file, by dotted name. Raises UserError for anything else."""
    with open_regular(path, LARGEST_FILE) as file:
        is_zip = zipfile.is_zipfile(file)
    return _zip_file(path) if is_zip else _legacy_file(path)


def _zip_file(path: Path) -> Tensors:
    archive = Archive(path)
    index = next((name for name in archive.members if name.split("/")[1:] == ["data.pkl"]), None)
    if index is None:
        raise UserError(f"{path} is an archive, but not one that torch wrote: it holds no data.pkl")
    if archive.members[index].file_size > _LARGEST_PICKLE:
        size = archive.members[index].file_size
        raise UserError(f"{path}: data.pkl claims {size} bytes, too many for a list of tensors")
    root = index.removesuffix("data.pkl")
    content = archive.read(index)
    with in_one_line(path, "is truncated or damaged: its list of tensors cannot be read"):
        views = named_tensors(describe(io.BytesIO(content)).root)

    @functools.lru_cache(maxsize=1)  # many tensors may lie in one storage
    def whole(key: str) -> bytes:
        return archive.read(f"{root}data/{key}")

    def read(storage: Storage) -> np.ndarray:
        return np.frombuffer(whole(storage.key), storage.dtype, storage.numel)

    sizes = {name: info.file_size for name, info in archive.members.items()}
    return _tensors(path, views, lambda key: sizes.get(f"{root}data/{key}"), read)


def _legacy_file(path: Path) -> Tensors:
    fault = "is not a torch file"
    with open_regular(path, LARGEST_FILE) as file, in_one_line(path, fault):
        size = length(file)
        head = io.BytesIO(file.read(_LARGEST_PICKLE))
        magic, protocol, system, (root, storages), (keys, _) = (describe(head) for _ in range(5))
        ours = isinstance(system.root, dict) and system.root.get("little_endian")
        if (magic.root, protocol.root) != (_MAGIC, _PROTOCOL) or not ours or not isinstance(keys, list):
            raise UserError(f"{path} {fault}: it does not begin as one")
        if set(keys) != set(storages) or len(keys) != len(storages):
            raise UserError(f"{path} is damaged: it lists {len(keys)} storages, its tensors lie in {len(storages)}")
        places: dict[str, int] = {}
        end = head.tell()
        for key in keys:
            file.seek(end)
            numel = int.from_bytes(file.read(8), "little")
            if numel != storages[key].numel:
                raise UserError(
                    f"{path} is truncated or damaged: storage {shown(key)} has {numel} numbers, its tensors say {storages[key].numel}"
                )
            places[key] = end + 8
            end += 8 + numel * storages[key].dtype.itemsize
        if end != size:
            raise UserError(f"{path} is truncated or damaged: its storages end at byte {end}, the file at {size}")
        views = named_tensors(root)

    def read(storage: Storage) -> np.ndarray:
        return np.fromfile(path, storage.dtype, storage.numel, offset=places[storage.key])

    held = {key: storage.numel * storage.dtype.itemsize for key, storage in storages.items()}
    return _tensors(path, views, held.get, read)


def _tensors(path: Path, views: dict[str, StorageView], held: Callable[[str], int | None], read: Storages) -> Tensors:
    """The tensors of views, each compared with the bytes that are held under its storage's key."""
    tensors = {}
    stored: dict[str, int] = {}
    for name, view in views.items():
        storage, size = view.storage, held(view.storage.key)
        needed = storage.numel * storage.dtype.itemsize
        if size is None or size < needed or view.size > storage.length:
            has = "nothing" if size is None else f"{size} bytes"
            reach = max(needed, (storage.start + view.size) * storage.dtype.itemsize)
            raise UserError(f"{path}: {shown(name)} {list(view.shape)} needs {reach} bytes, its storage has {has}")
        if math.prod(view.shape) > max(storage.length, 1):
            raise UserError(
                f"{path}: {shown(name)} {list(view.shape)} repeats the {storage.length} numbers of its storage; save a tensor.contiguous()"
            )
        stored[storage.key] = needed
        tensors[name] = StoredTensor(view.shape, storage.dtype, path.name, _reading(path, name, view, read))
    total, least = sum(map(num_bytes, tensors.values())), sum(stored.values())
    if total > _LARGEST_SHARE * least:
        raise UserError(f"{path}: its {len(tensors)} tensors take {total} bytes, all of them out of the same {least}")
    return tensors


def _reading(path: Path, name: str, view: StorageView, read: Storages) -> Callable[[], np.ndarray]:
    def tensor() -> np.ndarray:
        with in_one_line(f"{path}: {shown(name)}", "cannot be read"):
            numbers = read(view.storage)
            if numbers.size != view.storage.numel:
                raise UserError(f"its storage has only {numbers.size} of {view.storage.numel} numbers")
            strides = [stride * view.storage.dtype.itemsize for stride in view.stride]
            return np.lib.stride_tricks.as_strided(
                numbers[view.storage.start + view.offset :], view.shape, strides, writeable=False
            )

    return tensor
