"""The trial table: a log of a search's trials, read again by a search that goes on."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

from etils import epath
from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from regcache_jax.files.log import Log


class Trial(TypedDict):
    """A point of the search, how many images judged it, its bound, its error under each draw, and what it cost."""

    numbers: dict[str, int | float]
    images: Annotated[int, Field(ge=0)]
    error: float
    draws: list[float]
    block_flops: Annotated[int, Field(ge=0)]


class TrialTable:
    """Trials of one search, in memory and (where a path is given) in a file that survives a kill.

    Raises UserError for a table of another search, for another file, and for one that another process writes."""

    def __init__(self, path: epath.PathLike | None, fingerprint: str) -> None:
        self._log: Log[Any] = Log(path, {"search": fingerprint}, Trial, "search")
        self._known = {self._key(row["numbers"], row["images"]): row["draws"] for row in self.rows}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All trials, in the order in which they were made."""
        return self._log.rows

    @staticmethod
    def _key(numbers: dict[str, Any], images: int) -> str:
        return json.dumps([numbers, images], sort_keys=True)

    def find(self, numbers: Any, images: int) -> list[float] | None:
        """The errors of a point under each draw, on so many images, if it has been tried (the last time it was)."""
        return self._known.get(self._key(dataclasses.asdict(numbers), images))

    def add(self, numbers: Any, images: int, error: float, draws: list[float], block_flops: int) -> None:
        """Adds a trial and appends its line; `draws` are fewer than there were where it was given up early."""
        row: dict[str, Any] = {
            "numbers": dataclasses.asdict(numbers),
            "images": images,
            "error": error,
            "draws": draws,
            "block_flops": block_flops,
        }
        self._known[self._key(row["numbers"], images)] = draws
        self._log.append(row)
