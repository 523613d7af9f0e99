"""What a field of a frozen dataclass means, said once for Python and for the command line: help, unit, bounds.

`regcache_jax.cli.options` makes a command's options of such fields; a field's type gives the choices, its default the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from regcache_jax.core.errors import UserError, shown

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What a field says beside its name, type and default.

    `option`: its name on the command line, where that is not the field's own. `unit`: of a number, or what a text names. `least`: the
    smallest value; `above`: values are larger. `path`: of a text that names a file or folder, or either. `words`: those that a
    text may be, and users may add others for what `open_to` says (`registry.ADDED`)."""

    help: str
    option: str | None = None
    unit: str | None = None
    least: int | None = None
    most: int | None = None
    above: float | None = None
    path: Literal["file", "folder", "any"] | None = None
    words: tuple[str, ...] = ()
    open_to: Literal["task", "objective"] | None = None


def option(help: str, default: Any = dataclasses.MISSING, **meaning: Any) -> Any:
    """A field of a dataclass with its `Meaning`; without a default it must be given."""
    return dataclasses.field(default=default, metadata={"meaning": Meaning(help, **meaning)})


def like(owner: type, name: str, **changes: Any) -> Any:
    """A field that means what a field of another dataclass means, with its default; `changes` are to `Meaning`, or the `default`."""
    field = _field(owner, name)
    default = changes.pop("default", field.default)
    meaning = dataclasses.replace(meaning_of(field), **changes)
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def meaning_of(field: dataclasses.Field[Any]) -> Meaning:
    """What a field made by `option` or `like` means."""
    return field.metadata["meaning"]


def refuse_unknown(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises UserError for names that are none, with the nearest that are."""
    names = list(known)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}" if near else f"there are {', '.join(names)}"
            raise UserError(f"{owner} has no {shown(name, 60)}; {hint}")


def spelt_right(owner: type[T]) -> type[T]:
    """A dataclass that refuses names it has no field of with the nearest that it has."""
    build = owner.__init__
    names = [field.name for field in dataclasses.fields(owner) if field.init]  # type: ignore[arg-type]

    @functools.wraps(build)
    def built(self: T, *values: Any, **named: Any) -> None:
        refuse_unknown(owner.__name__, named, names)
        build(self, *values, **named)

    owner.__init__ = built  # type: ignore[assignment, method-assign]
    return owner


def check_fields(owner: Any) -> None:
    """Raises UserError that names every field of a dataclass that holds a number outside the bounds that it states (None is in all of
    them), or a word that is none of its type's."""
    faults, hints = [], typing.get_type_hints(type(owner))
    for field in dataclasses.fields(owner):
        meaning, value, hint = field.metadata.get("meaning"), getattr(owner, field.name), hints[field.name]
        if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            faults.append(f"{field.name} must be one of {', '.join(typing.get_args(hint))}, got {value!r}")
        for each in value if isinstance(value, tuple) else (value,):
            if meaning is not None and (fault := _fault(meaning, each)):
                faults.append(f"{field.name} must be {fault}, got {each}")
    if faults:
        raise UserError("; ".join(faults))


def _fault(meaning: Meaning, value: object) -> str | None:
    """The bound that a value breaks, in words."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if meaning.least is not None and not value >= meaning.least:
        return f"at least {meaning.least}"
    if meaning.most is not None and not value <= meaning.most:
        return f"at most {meaning.most}"
    if meaning.above is not None and not value > meaning.above:
        return f"above {meaning.above:g}"
    return None


def _field(owner: type, name: str) -> dataclasses.Field[Any]:
    return next(field for field in dataclasses.fields(owner) if field.name == name)
