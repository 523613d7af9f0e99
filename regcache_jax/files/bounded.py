"""The one way in for files: a regular file, of at most a stated size, read once; and JSON that holds what its schema says.

Whatever is wrong becomes one UserError: the file, the place in it, the fault, and what would be right. pydantic checks the schemas
(rather than msgspec, which stops at the first fault): it takes the dataclasses and annotations that the code has anyway, names every
fault of a file by its place, and its parser bounds how deep JSON may be nested.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import math
import os
import stat
import types
from collections.abc import Callable
from typing import Any, TypeVar

import pydantic
import pydantic_core
from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.files.places import as_path

T = TypeVar("T")

TEXT_LIMIT = 64 << 20
"""Bytes of a text or JSON file: eight times the largest tokenizer.json that is known."""
DEEPEST = 200
"""How deep JSON may be nested; pydantic's parser has this bound built in."""
FAULTS_SHOWN = 6
LARGEST = 1 << 40
"""Bytes of a file that is read in pieces."""

_adapter: Callable[[Any], Any] = functools.lru_cache(maxsize=64)(pydantic.TypeAdapter)


def open_regular(path: epath.PathLike, limit: int) -> io.BufferedIOBase:
    """Opens a file for reading, for those who read it in pieces or map it; it holds at most `limit` bytes.

    Raises UserError for what is not there, not a regular file (folder, device, pipe, socket, a link in a circle), larger or unreadable."""
    path = as_path(path)
    try:
        if "://" in str(path):
            if not path.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if (size := path.stat().length) > limit:
                raise _too_large(path, size, limit)
            return io.BytesIO(path.read_bytes())
        else:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not blocked: a pipe without a writer
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                os.close(handle)
                raise UserError(f"{shown(path)} is {_kind(found.st_mode)}; expected a regular file")
            if found.st_size > limit:
                os.close(handle)
                raise _too_large(path, found.st_size, limit)
            return os.fdopen(handle, "rb")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(path)} cannot be read: {_reason(error)}") from None


def open_in_pieces(path: epath.PathLike) -> Any:
    """A large file (of bytes, whatever a store of objects calls its class), for those who read it in pieces wherever it lies.

    Raises UserError as `open_regular` does."""
    if "://" in str(path):  # a store of objects holds nothing but regular ones
        return as_path(path).open("rb")
    return open_regular(path, LARGEST)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for is_one, name in kinds if is_one(mode)), "no file")


def _reason(error: Exception) -> str:
    return shown(getattr(error, "strerror", None) or error or type(error).__name__)


def _too_large(path: epath.PathLike, size: int, limit: int) -> UserError:
    return UserError(f"{shown(path)} is too large: {size:,} bytes, at most {limit:,} are read")


def read_bytes(path: epath.PathLike, limit: int) -> bytes:
    """All of a regular file, read once. Raises UserError as `open_regular` does, also for a file that grows beyond `limit` meanwhile."""
    with open_regular(path, limit) as file:
        try:
            # room is made for what there is, not for what there may be; one byte more shows a file that grows, or has no stated size
            content = file.read(min(length(file), limit) + 1)
            while len(content) <= limit and (piece := file.read(1 << 20)):
                content += piece
        except OSError as error:
            raise UserError(f"{shown(path)} cannot be read: {_reason(error)}") from None
    if len(content) > limit:  # of a size that was not stated: /proc has such files
        raise _too_large(path, len(content), limit)
    return content


def length(file: io.BufferedIOBase) -> int:
    """The bytes of an open file (0 where nobody says), which is left at its beginning."""
    try:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        return end
    except OSError:  # /proc has such files
        return 0


def read_text(path: epath.PathLike, limit: int = TEXT_LIMIT) -> str:
    """A UTF-8 text, its line breaks as they are. Raises UserError as `read_bytes` does, and for other bytes."""
    return decode(read_bytes(path, limit), path)


def decode(content: bytes, where: object) -> str:
    """UTF-8 as text, without the mark that some editors put in front. Raises UserError that says `where` and which byte is none."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, line = content[error.start], content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{shown(where)} is not UTF-8 text: byte 0x{byte:02x} at position {error.start} (line {line}); save it as UTF-8"
        ) from None


def read_json(path: epath.PathLike, schema: type[T] | types.GenericAlias, limit: int = TEXT_LIMIT) -> T:
    """What a JSON file holds, checked: an instance of `schema`, any type that pydantic knows (a dataclass, a TypedDict, a model,
    `dict[str, int]`; `object` for any JSON). Raises UserError with every fault's place."""
    return parse_json(read_bytes(path, limit), schema, path)


def parse_json(content: bytes | str, schema: type[T] | types.GenericAlias, where: object) -> T:
    """The same of JSON that lies inside a file; `where` names it. NaN, infinities, names that stand twice in one object and nesting
    deeper than DEEPEST are refused."""
    text = content if isinstance(content, str) else decode(content, where)
    try:
        pydantic_core.from_json(
            text, allow_inf_nan=False
        )  # says the place of a fault, and bounds the depth for what follows
        tree = json.loads(text, object_pairs_hook=_unique, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown(where)} is not readable JSON: {_reason(error)}") from None
    if schema is object:
        return tree
    try:
        return _adapter(schema).validate_json(text, strict=True)  # strict: "3" is no number, true is none
    except pydantic.ValidationError as error:
        faults = [_fault(each) for each in error.errors(include_url=False, include_context=False)]
    more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
    raise UserError(f"{shown(where)}: {'; '.join(faults[:FAULTS_SHOWN])}{more}")


def _fault(found: Any) -> str:
    """`spec.image.blocks.norm_eps: input should be greater than 0, got -1.0`."""
    place = ".".join(str(part) for part in found["loc"])
    message = found["msg"].removeprefix("Value error, ")
    got = "" if found["type"] in ("missing", "value_error") else f", got {shown(repr(found['input']), 60)}"
    return f"{shown(place, 120)}{': ' if place else ''}{message[:1].lower()}{message[1:]}{got}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return tree


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(digits, 40)} is beyond what a float holds")
    return number
