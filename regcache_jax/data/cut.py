"""The one cutter of batches: rows cut into parts of one shape, the last one filled up, with a mask that tells rows from fillers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Bool, Shaped


def filled(rows: Shaped[np.ndarray, "n *R"], size: int, value: float | None = None) -> Shaped[np.ndarray, "B *R"]:
    """So many rows: what is missing repeats the last one, which no range sees, or holds a value."""
    missing = size - len(rows)
    if not missing:
        return rows
    if value is None:
        return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
    return np.concatenate([rows, np.full((missing, *rows.shape[1:]), value, rows.dtype)])


def cut(
    rows: Shaped[Array | np.ndarray, "n *R"], size: int
) -> Iterator[tuple[Shaped[Array | np.ndarray, "B *R"], Bool[np.ndarray, "B"]]]:
    """Parts of `size` rows (of fewer, where there are fewer in all), the last one filled up with its last row, each with its mask."""
    size = min(size, len(rows))
    for first in range(0, len(rows), size or 1):
        part = rows[first : first + size]
        yield part if len(part) == size else filled(np.asarray(part), size), np.arange(size) < len(part)


def in_batches(
    rows: Shaped[Array | np.ndarray, "n *R"], size: int = 64, *, fill: bool = True
) -> Iterator[Shaped[Array | np.ndarray, "B *R"]]:
    """The parts of `cut` alone, for what sees no fillers (ranges). `fill=False`: the last part is shorter, for statistics that would."""
    for part, real in cut(rows, size):
        yield part if fill else part[: int(real.sum())]
