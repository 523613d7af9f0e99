"""A command's options, made of the fields of frozen dataclasses, and the dataclasses filled from what was given."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import click
import click.shell_completion

from regcache_jax.core.errors import UserError
from regcache_jax.core.options import Meaning, meaning_of
from regcache_jax.core.registry import ADDED

Command = Callable[..., Any]


class Part(NamedTuple):
    """Some fields of a dataclass; the others keep their defaults."""

    owner: type
    names: tuple[str, ...]


def some(owner: type, *names: str) -> Part:
    """The fields of a dataclass that a command has as options."""
    return Part(owner, names)


def takes(**groups: type | Part) -> Callable[[Command], Command]:
    """Gives a command the options of dataclasses, and calls it with an instance of each, under the name it has here.

    `--help` lists them in this order. What a dataclass refuses (UserError) is wrong use."""
    parts = {
        name: each if isinstance(each, Part) else Part(each, tuple(field.name for field in dataclasses.fields(each)))
        for name, each in groups.items()
    }

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def filled(**given: Any) -> Any:
            built = {}
            for group, part in parts.items():
                values = {name: given.pop(name) for name in part.names}
                try:
                    built[group] = part.owner(**values)
                except UserError as error:
                    raise click.UsageError(str(error)) from None
            return function(**given, **built)

        command: Command = filled
        for part in reversed(parts.values()):
            hints = typing.get_type_hints(part.owner)
            fields = {field.name: field for field in dataclasses.fields(part.owner)}
            for name in reversed(part.names):
                command = option_of(fields[name], hints[name])(command)
        return command

    return decorate


def option_of(field: dataclasses.Field[Any], hint: Any) -> Callable[[Command], Command]:
    """The option of one field: `--its-name`, required without a default, a flag where it is a bool."""
    meaning, default = meaning_of(field), field.default
    name = f"--{(meaning.option or field.name).replace('_', '-')}"
    if hint is bool:
        return click.option(name, field.name, is_flag=True, help=meaning.help)
    given: dict[str, Any] = {"required": True}  # click takes a default of None for an answer
    if default is not dataclasses.MISSING:
        text = ",".join(map(str, default)) if isinstance(default, tuple) else default
        given = {"default": text, "show_default": default not in (None, "")}
    unit = None if meaning.unit is None else meaning.unit.upper()
    return click.option(name, field.name, type=type_of(hint, meaning), metavar=unit, help=meaning.help, **given)


def type_of(hint: Any, meaning: Meaning) -> click.ParamType:
    """How click reads a value of an annotated type, within the bounds that the field states."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        words = [kind for kind in kinds if typing.get_origin(kind) is Literal]
        if words and len(kinds) > 1:
            number = Whole(meaning.least, meaning.most)
            number.words = typing.get_args(words[0])
            return number
        (hint,) = kinds
    if typing.get_origin(hint) is Literal:
        return click.Choice(typing.get_args(hint))
    if meaning.open_to is not None:
        return OpenChoice(meaning.words, ADDED[meaning.open_to])
    if typing.get_origin(hint) is tuple:
        return Numbers() if typing.get_args(hint)[0] is int else Names()
    if hint is int:
        unbounded = meaning.least is None and meaning.most is None
        return click.INT if unbounded else Whole(meaning.least, meaning.most)
    if hint is float:
        bound = meaning.least if meaning.above is None else meaning.above
        return Real(bound, min_open=meaning.above is not None)
    if meaning.path is not None:
        return click.Path(file_okay=meaning.path != "folder", dir_okay=meaning.path != "file")
    return click.STRING


class Whole(click.IntRange):
    """A whole number within bounds, or one of some words."""

    words: tuple[str, ...] = ()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or the word."""
        if value in self.words:
            return value
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            bounds = (
                ""
                if self.min is None
                else f" from {self.min} on"
                if self.max is None
                else f" from {self.min} to {self.max}"
            )
            self.fail(f"takes {' or '.join([f'a whole number{bounds}', *self.words])}, got {value}", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The words that begin so."""
        return [click.shell_completion.CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class Real(click.FloatRange):
    """A number within a bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            bound = "" if self.min is None else f" above {self.min:g}" if self.min_open else f" from {self.min:g} on"
            self.fail(f"takes a number{bound}, got {value}", param, ctx)


class OpenChoice(click.Choice[str]):
    """One of some words, or one that was registered since."""

    def __init__(self, words: tuple[str, ...], added: list[str]) -> None:
        super().__init__(words)
        self._added = added

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word."""
        return value if value in self._added else super().convert(value, param, ctx)


class Numbers(click.ParamType):
    """Numbers of at least 1, separated by commas, as a tuple."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        parts = value.replace(" ", "").split(",")
        if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"takes numbers from 1 on, such as 1,2, got {value!r}", param, ctx)
        return tuple(map(int, parts))


class Names(click.ParamType):
    """Names separated by commas, as a tuple."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names."""
        return tuple(part for part in value.replace(" ", "").split(",") if part)
