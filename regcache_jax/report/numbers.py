"""Figures as a person reads them: shares, intervals, differences, bytes. A number and its unit stay on one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def percent(share: float) -> str:
    """A share."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def share(row: Json) -> str:
    """Top-1 of a row."""
    return percent(row["metrics"]["acc1"])


def within(changes: Json, number: int) -> str:
    """The interval of a row's top-1."""
    low, high = changes["intervals"][number]["acc1"]
    return f"({100 * low:.1f} to {100 * high:.1f})"


def points(difference: Json) -> str:
    """A difference of top-1 with its interval."""
    low, high = difference["interval"]
    return f"{100 * difference['acc1']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def amount(number: float) -> str:
    """A large number."""
    return _with_unit(number, ("", "thousand", "million", "billion", "trillion"))


def size(number: float) -> str:
    """Bytes."""
    return _with_unit(number, ("B", "kB", "MB", "GB"))


def _with_unit(number: float, units: Sequence[str]) -> str:
    """In the first unit in which it is less than a thousand."""
    power = sum(number >= 1000**each for each in range(1, len(units)))
    return f"{number / 1000**power:.3g}\N{NO-BREAK SPACE}{units[power]}".rstrip()
