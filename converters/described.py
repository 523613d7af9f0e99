"""What a file of torch describes: storages, tensors as views of them, and the names that the containers around them give."""

from __future__ import annotations

import dataclasses

import numpy as np

from regcache_jax.core.errors import UserError, shown

_MOST_ENTRIES = 1_000_000  # of all containers, each counted wherever it is named
_DEEPEST = 64  # containers inside containers; real encoders have fewer than ten
_LONGEST_NAME = 1000
_LONGEST_NAMES = 1 << 28  # characters of all names that are made, nested ones with those they lie in


@dataclasses.dataclass(frozen=True)
class Storage:
    """A storage as the pickle names it: `numel` elements that are kept under `key`; of them those from `start` on, `part` in number
    (None: to the end), are meant."""

    key: str
    dtype: np.dtype
    numel: int
    start: int = 0
    part: int | None = None

    @property
    def length(self) -> int:
        """How many elements are meant."""
        return self.numel - self.start if self.part is None else self.part


@dataclasses.dataclass(frozen=True)
class StorageView:
    """A tensor as the pickle describes it: which storage, and where in it; offset and stride count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements of the storage it reaches over, from the storage's first on; 0 for a tensor without elements."""
        if 0 in self.shape:
            return 0
        return self.offset + 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))


class Box:
    """An object of a class that is not known (a TorchScript archive names one for every module): it keeps its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[object, object] = {}


def named_tensors(root: object) -> dict[str, StorageView]:
    """The tensors inside nested dicts and boxes, by dotted name. Raises UserError where there are none, where a name stands for two,
    and where containers hold themselves."""
    found: dict[str, StorageView] = {}
    pending = [("", root, 0)]
    entries = characters = 0
    while pending:
        prefix, node, depth = pending.pop()
        if isinstance(node, StorageView):
            if prefix in found:
                raise UserError(f"two of its tensors are called {shown(prefix)}")
            found[prefix] = node
            continue
        contents = node.attributes if isinstance(node, Box) else node
        if not isinstance(contents, dict):
            continue
        entries += len(contents)
        if depth >= _DEEPEST or entries > _MOST_ENTRIES:
            raise UserError(
                f"its containers hold themselves, or one another more than {_MOST_ENTRIES:,} times or {_DEEPEST} deep"
            )
        for name, child in reversed(contents.items()):
            length = len(prefix) + len(name) if isinstance(name, str) else len(prefix)
            if length > _LONGEST_NAME:
                raise UserError(
                    f"the name {shown(f'{prefix}.{name}')} has {length:,} characters, at most {_LONGEST_NAME:,} are read"
                )
            characters += length
            if isinstance(child, StorageView | Box | dict):
                pending.append((f"{prefix}.{name}" if prefix else str(name), child, depth + 1))
        if characters > _LONGEST_NAMES:
            raise UserError(f"its names have more than {_LONGEST_NAMES:,} characters")
    if not found:
        raise UserError("it holds no tensors")
    return found
