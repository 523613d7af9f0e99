"""Reads the index of a torch archive: a pickle, interpreted by an unpickler that can build tensors' descriptions only.

A pickle is a program. Here it may name six harmless functions; any other class it names becomes an inert `_Box` (a TorchScript
archive such as OpenAI's CLIP names one for every module), and any other function is refused before it is called.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from regcache_jax.core.errors import UserError

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_TORCHSCRIPT_LISTS = ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_DEEPEST = 64  # modules inside modules; real encoders have fewer than ten


@dataclasses.dataclass(frozen=True)
class StorageView:
    """A tensor as the pickle describes it: which storage, and where in it; offset and stride count elements."""

    key: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Box:
    """An object of a class that is not known: it keeps what the pickle gives it, and does nothing."""

    attributes: dict[str, Any]

    def __new__(cls, *_: Any) -> _Box:
        box = super().__new__(cls)
        box.attributes = {}
        return box

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


def load_tensors(data: bytes, file: str) -> dict[str, StorageView]:
    """The tensors that a torch pickle names, by dotted name. Raises UserError for anything but tensors in containers."""
    try:
        _check_memo(data)
        root = _TensorUnpickler(io.BytesIO(data)).load()
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{file} is truncated or damaged: its list of tensors cannot be read ({error})") from None
    named = named_leaves(root, lambda value: isinstance(value, StorageView))
    if not named:
        raise UserError(f"{file} holds no tensors")
    return named


def _check_memo(data: bytes) -> None:
    """Raises UserError for a pickle that numbers a note higher than it is long: Python would make room for all below it."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
            raise UserError(
                f"its list of {len(data)} bytes numbers an entry {argument}; reading it would exhaust the memory"
            )


def named_leaves(root: Any, is_leaf: Callable[[Any], bool]) -> dict[str, Any]:
    """The leaves inside nested dicts and boxes, by dotted name."""
    found: dict[str, Any] = {}
    pending = [("", root, 0)]
    while pending:
        prefix, node, depth = pending.pop()
        if is_leaf(node):
            found[prefix] = node
        elif depth < _DEEPEST:
            dot = f"{prefix}." if prefix else ""
            pending.extend((f"{dot}{name}", child, depth + 1) for name, child in reversed(_children(node).items()))
    return found


def _children(node: Any) -> dict[str, Any]:
    contents = node.attributes if isinstance(node, _Box) else node
    return {str(name): child for name, child in contents.items()} if isinstance(contents, Mapping) else {}


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StorageView:
    """Stands in for torch's function that makes a tensor of a storage."""
    key, dtype = storage
    shape, stride = tuple(shape), tuple(stride)
    if len(shape) != len(stride) or not all(
        type(number) is int and number >= 0 for number in (offset, *shape, *stride)
    ):
        raise UserError("a tensor's offset, shape or stride is not made of whole numbers")
    return StorageView(str(key), dtype, offset, shape, stride)


def _same(value: Any, *_: Any) -> Any:
    """Stands in for torch's functions that dress up a value: a tensor as a parameter, a list as a typed list."""
    return value


def _nothing(*_: Any) -> None:
    """Stands in for hooks and devices, which have no meaning here."""


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _same,
    **{("torch.jit._pickle", name): _same for name in _TORCHSCRIPT_LISTS},
    ("torch", "Size"): tuple,
    ("torch", "device"): _nothing,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler whose only outcomes are containers, numbers, strings, `StorageView`s and boxes."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for. Raises UserError for whatever could do more than hold data."""
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module.split(".")[0] == "__torch__":
            return _Box
        raise UserError(
            f"it asks for {module}.{name}, which is not part of a tensor; such a file could run code and is not read. To keep its tensors "
            "alone, if you trust it: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
        )

    def persistent_load(self, identity: Any) -> tuple[str, np.dtype]:
        """A storage: its key in the archive and its type."""
        kind, dtype, key, *_ = identity
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise UserError("it refers to something that is not a tensor's storage")
        return str(key), dtype
