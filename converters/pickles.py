"""Reads what torch pickles, zip or legacy, as descriptions: an interpreter of our own, of which nothing outside it can be reached.

A pickle is a program. Python's unpickler runs it with real functions and objects; here the few steps that torch's files need act on
containers that were made here, a name is only a name, and calling one gives a description or is refused. Steps, depth, numbers and
names are bounded, so that a short file cannot describe endless things.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from regcache_jax.converters.described import Box, Storage, StorageView

from regcache_jax.core.errors import UserError, shown

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
_SAME = ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_KNOWN = {
    "collections": ("OrderedDict",),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter"),
    "torch.jit._pickle": _SAME,
    "torch": ("Size", "device", *_STORAGES),
}
"""What a pickle may name, by module; TorchScript archives name a module of their own besides."""
_MOST_STEPS = 1_000_000  # of one pickle; an encoder of 400 blocks with Adam's moments (22,400 tensors) takes 700,089
_LARGEST_RANK = 16
_BITS = 63  # of a size, or of a number that is a name


@dataclasses.dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names."""

    module: str
    name: str


class Described(NamedTuple):
    """What a pickle describes, and every storage it names, whatever it does with it."""

    root: object
    storages: dict[str, Storage]


def describe(stream: io.BytesIO) -> Described:
    """The pickle that begins at this place of a stream, which then stands behind it. Raises UserError for anything but tensors in
    containers, and whatever `pickletools` raises for what is no pickle."""
    interpreter = _Interpreter()
    return Described(interpreter.run(stream), interpreter.storages)


_LITERALS = {
    *(
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
    ),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTES = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_RECALLS = ("GET", "BINGET", "LONG_BINGET")


class _Interpreter:
    """One pickle's stack and notes. Every object on them was made here."""

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._notes: dict[int, object] = {}
        self._steps = 0
        self.storages: dict[str, Storage] = {}

    def run(self, stream: io.BytesIO) -> object:
        """What the pickle at this place of the stream describes. Raises UserError for a step that torch's files do not have."""
        for opcode, argument, _ in pickletools.genops(stream):
            self._count(1)
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, argument)
        raise UserError("its list of tensors does not end")

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise UserError(f"its list of tensors takes more than {_MOST_STEPS:,} steps to read")

    def _pop(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise UserError("its list of tensors takes what was not put there")
        return self._stack.pop()

    def _since_mark(self) -> list[object]:
        if not self._marks:
            raise UserError("its list of tensors takes what was not put there")
        mark = self._marks.pop()
        taken = self._stack[mark:]
        del self._stack[mark:]
        return taken

    def _step(self, step: str, argument: Any) -> None:
        stack = self._stack
        match step:
            case "PROTO" | "FRAME":
                pass
            case _ if step in _LITERALS:
                stack.append(_CONSTANTS.get(step, argument))
            case _ if step in _NOTES:
                stack.append(value := self._pop())
                self._notes[len(self._notes) if step == "MEMOIZE" else argument] = value
            case _ if step in _RECALLS:
                if argument not in self._notes:
                    raise UserError(f"its list of tensors recalls note {argument}, which there is not")
                stack.append(self._notes[argument])
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                if self._marks and self._marks[-1] == len(stack):
                    self._marks.pop()
                else:
                    self._pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                value = self._pop()
                stack.extend((value, value))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "DICT":
                stack.append(_filled({}, self._since_mark()))
            case "LIST" | "FROZENSET":
                stack.append(self._since_mark())
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case _ if step in _TUPLES:
                values = [self._pop() for _ in range(_TUPLES[step])]
                stack.append(tuple(values[::-1]))
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._since_mark())
            case "APPEND":
                self._append([self._pop()])
            case "APPENDS" | "ADDITEMS":
                self._append(self._since_mark())
            case "GLOBAL":
                module, _, name = str(argument).partition(" ")
                stack.append(_known(module, name))
            case "STACK_GLOBAL":
                named, within = self._pop(), self._pop()
                stack.append(
                    _known(str(within)[:200], str(named)[:200]) if type(named) is type(within) is str else None
                )
            case "BINPERSID":
                stack.append(storage := _storage(self._pop()))
                if self.storages.setdefault(storage.key, storage).dtype != storage.dtype:
                    raise UserError(f"its storage {shown(storage.key)} is of two types")
            case "REDUCE" | "NEWOBJ":
                arguments, called = self._pop(), self._pop()
                stack.append(self._call(called, arguments))
            case "BUILD":
                state, target = self._pop(), self._pop()
                stack.append(_with_state(target, state))
            case _:
                raise UserError(f"its list of tensors has the step {step}, which torch's files do not have")

    def _set(self, pairs: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, dict):
            raise UserError(f"its list of tensors sets an entry of what is no dict ({_kind(target)})")
        self._stack.append(_filled(target, pairs))

    def _append(self, values: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, list):
            raise UserError(f"its list of tensors adds to what is no list ({_kind(target)})")
        target.extend(values)
        self._stack.append(target)

    def _call(self, called: object, arguments: object) -> object:
        """What a call stands for. None for hooks and devices, which have no meaning here."""
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise UserError(f"its list of tensors calls what is no function ({_kind(called)})")
        match called.module, called.name:
            case "collections", "OrderedDict":
                pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
                self._count(len(pairs))
                return _filled({}, [part for pair in pairs for part in _pair(pair)])
            case "torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor":
                return _tensor(arguments)
            case ("torch._utils", "_rebuild_parameter") | ("torch.jit._pickle", _) | ("torch", "Size"):
                return arguments[0] if arguments else ()
            case "torch", "device":
                return None
            case module, _ if module.partition(".")[0] == "__torch__":
                return Box()
        raise UserError(f"it calls {shown(called.module)}.{shown(called.name)}, which is no function")


def _known(module: str, name: str) -> _Name:
    """Raises UserError for whatever could do more than hold data."""
    if name in _KNOWN.get(module, ()) or module.partition(".")[0] == "__torch__":
        return _Name(module, name)
    raise UserError(
        f"it asks for {shown(module)}.{shown(name)}, which is not part of a tensor; such a file could run code and is not read. "
        "To keep its tensors alone, if you trust it: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
    )


def _storage(identity: object) -> Storage:
    """`("storage", class, key, device, numel)`, in legacy files also a part: `(key, start, numel)`."""
    match identity:
        case ("storage", _Name("torch", kind), str(key), _, int(numel), *view) if (
            kind in _STORAGES and 0 <= numel < 2**_BITS
        ):
            found = Storage(key, _STORAGES[kind], numel)
            match view:
                case [] | [None]:
                    return found
                case [(str(), int(start), int(part))] if 0 <= start <= numel and 0 <= part <= numel - start:
                    return Storage(key, found.dtype, numel, start, part)
    raise UserError("it refers to something that is not a tensor's storage")


def _tensor(arguments: tuple[object, ...]) -> StorageView:
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape) | list(shape), tuple(stride) | list(stride), *_):
            numbers = (offset, *shape[: _LARGEST_RANK + 1], *stride[: _LARGEST_RANK + 1])
            whole = all(type(number) is int and 0 <= number < 2**_BITS for number in numbers)
            if whole and len(shape) == len(stride) <= _LARGEST_RANK:
                return StorageView(storage, offset, tuple(shape), tuple(stride))
    raise UserError("a tensor's storage, offset, shape or stride is not made of whole numbers, one an axis")


def _filled(target: dict[object, object], pairs: list[object]) -> dict[object, object]:
    """A dict with these keys and values, one after the other. Raises UserError for keys that are no names."""
    if len(pairs) % 2:
        raise UserError("its list of tensors has a key without a value")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, str) and not (isinstance(key, int) and key.bit_length() <= _BITS):
            raise UserError(f"its list of tensors has a key that is no name ({_kind(key)})")
        target[key] = value
    return target


def _pair(pair: object) -> tuple[object, object]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError("its list of tensors has an ordered dict that is not made of pairs")
    return pair[0], pair[1]


def _with_state(target: object, state: object) -> object:
    """A box takes its attributes; what an ordered dict carries beside its entries (torch's versions) is left aside."""
    if isinstance(target, Box):
        if isinstance(state, dict):
            target.attributes = state
    elif not isinstance(target, dict):
        raise UserError(f"its list of tensors changes what is not its own ({_kind(target)})")
    return target


def _kind(thing: object) -> str:
    if isinstance(thing, _Name):
        return f"{shown(thing.module, 80)}.{shown(thing.name, 80)}"
    return f"a number of {thing.bit_length()} bits" if isinstance(thing, int) else type(thing).__name__.lstrip("_")
