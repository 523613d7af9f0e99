"""Objectives: what an encoder's output is, and what its error is. A search, a sensitivity, a comparison and a claim take the same one.

An objective is a word, or in Python any function of (float outputs, quantised outputs) that gives an error for each image; what they are
made of stands in `outputs`, which loads JAX.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from regcache_jax.core.errors import UserError

LabelFree = Literal["pooled", "patches", "both"]
Word = Literal["pooled", "patches", "both", "accuracy"]

OLD_NAMES: dict[str, Word] = {"features": "pooled"}
"""Words of 0.1.0."""


Objective: TypeAlias = str | Callable[..., Any]
"""One of `Word` (or of `OLD_NAMES`), or an `outputs.ErrorFunction`."""


def checked(objective: Objective) -> Objective:
    """An objective under its present name. Raises UserError for a word that is none."""
    if callable(objective):
        return objective
    word = OLD_NAMES.get(objective, objective)
    if word not in typing.get_args(Word):
        raise UserError(
            f"objective must be one of {', '.join(typing.get_args(Word))}, or a function, got {objective!r}"
        )
    return word


def name_of(objective: Objective) -> str:
    """The word; of a function, where it is defined: tables and plan files know it by that."""
    if isinstance(objective, str):
        return objective
    return f"{objective.__module__}.{getattr(objective, '__qualname__', type(objective).__qualname__)}"


def reads_patches(objective: Objective) -> bool:
    """Whether an objective reads patch tokens (a function may)."""
    return callable(objective) or objective in ("patches", "both")
