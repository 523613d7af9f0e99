"""Specs as JSON, field by field, each held to its annotation; what was added after 0.1.0 may be missing."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from regcache_jax.core.errors import UserError


def added(default: Any) -> Any:
    """A field that specs of version 0.1.0 did not have. At its default it is left out of JSON, so that old encoders keep their hash."""
    return dataclasses.field(default=default, metadata={"added": True})


def _name(field: dataclasses.Field) -> str:
    """What a field is called in JSON: as it always was, where its name here has become another."""
    return field.metadata.get("json", field.name)


def to_json(value: Any) -> Any:
    """A spec as plain JSON values; what was added to it later, and is as it was before, is left out."""
    if not dataclasses.is_dataclass(value):
        return value
    fields = [field for field in dataclasses.fields(value) if not _left_out(field, getattr(value, field.name))]
    return {_name(field): to_json(getattr(value, field.name)) for field in fields}


def _left_out(field: dataclasses.Field, value: object) -> bool:
    return field.metadata.get("added", False) and value == field.default


def from_json(cls: Any, tree: Any, where: str) -> Any:
    """Builds one dataclass from a JSON object, field by field. Raises ValueError naming the first that is missing, unknown or not
    what it may be."""
    if not isinstance(tree, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(tree).__name__}")
    fields = {_name(field): field for field in dataclasses.fields(cls)}
    unknown = sorted(set(tree) - set(fields))
    missing = sorted(
        name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in tree
    )
    if unknown or missing:
        raise ValueError(f"{where} has unknown fields {unknown} and lacks {missing}")
    hints = typing.get_type_hints(cls)
    given = {
        fields[name].name: _field(hints[fields[name].name], value, f"{where}.{name}") for name, value in tree.items()
    }
    try:
        return cls(**given)
    except UserError as error:
        raise ValueError(f"{where}: {error}") from None


def _field(hint: Any, value: object, where: str, or_null: str = "") -> Any:
    """One value, held to its field's annotation. JSON has lists for tuples and may leave out a float's point."""
    options = typing.get_args(hint)
    if types.NoneType in options:
        return None if value is None else _field(options[0], value, where, " or null")
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)
    if typing.get_origin(hint) is tuple:
        numbers = value if isinstance(value, list | tuple) else []
        if len(numbers) == len(options) and all(type(number) in (int, float) for number in numbers):
            return tuple(float(number) for number in numbers)
        wanted = f"{len(options)} x float"
    elif options:
        if value in options:
            return value
        wanted = "one of " + ", ".join(options)
    else:
        if type(value) is hint:  # a bool is no number here
            return value
        if hint is float and type(value) is int:
            return float(value)
        wanted = hint.__name__
    raise ValueError(f"{where} must be {wanted}{or_null}, got {value!r}")
