"""Objectives: what an encoder's output is, and what its error is. A search, a sensitivity, a comparison and a claim take the same one.

An objective is a word, or in Python any function of (float outputs, quantised outputs) that gives an error for each image; what they are
made of stands in `outputs`, which loads JAX.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from regcache_jax.core.errors import UserError
from regcache_jax.core.registry import enter

LabelFree = Literal["pooled", "patches", "both"]
Word = Literal["pooled", "patches", "both", "accuracy"]

OLD_NAMES: dict[str, Word] = {"features": "pooled"}
"""Words of 0.1.0."""


OWN: dict[str, Callable[..., Any]] = {}
"""Functions that were registered, by their words."""


Objective: TypeAlias = str | Callable[..., Any]
"""One of `Word` (or of `OLD_NAMES`), or an `outputs.ErrorFunction`."""


def checked(objective: Objective) -> Objective:
    """An objective under its present name, or the function that a word was registered for. Raises UserError for a word that is none."""
    if callable(objective):
        return objective
    if objective in OWN:
        return OWN[objective]
    word = OLD_NAMES.get(objective, objective)
    if word not in typing.get_args(Word):
        words = ", ".join((*typing.get_args(Word), *OWN))
        raise UserError(f"objective must be one of {words}, or a function, got {objective!r}")
    return word


def register(name: str, function: Callable[..., Any]) -> None:
    """Gives a function (an `outputs.ErrorFunction`) a word, for configurations and the command line; tables and plans still know it by
    where it is defined.

    Raises UserError for a word that is taken."""
    if name in (*typing.get_args(Word), *OLD_NAMES):
        raise UserError(f"there is an objective {name} already; there are {', '.join((*typing.get_args(Word), *OWN))}")
    enter(OWN, name, function, "objective")


def name_of(objective: Objective) -> str:
    """The word; of a function, where it is defined: tables and plan files know it by that."""
    if isinstance(objective, str):
        return objective
    return f"{objective.__module__}.{getattr(objective, '__qualname__', type(objective).__qualname__)}"


def reads_patches(objective: Objective) -> bool:
    """Whether an objective reads patch tokens (a function may)."""
    return callable(objective) or objective in ("patches", "both")
