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
    """A point of the search, how many chunks of the reference set judged it, its error, and what it cost."""

    numbers: dict[str, int | float]
    chunks: Annotated[int, Field(ge=0)]
    error: float
    block_flops: Annotated[int, Field(ge=0)]


class TrialTable:
    """Trials of one search, in memory and (where a path is given) in a file that survives a kill.

    Raises UserError for a table of another search, for another file, and for one that another process writes."""

    def __init__(self, path: epath.PathLike | None, fingerprint: str) -> None:
        self._log: Log[Any] = Log(path, {"search": fingerprint}, Trial, "search")
        self._known = {self._key(row["numbers"], row["chunks"]): row["error"] for row in self.rows}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All trials, in the order in which they were made."""
        return self._log.rows

    @staticmethod
    def _key(numbers: dict[str, Any], chunks: int) -> str:
        return json.dumps([numbers, chunks], sort_keys=True)

    def find(self, numbers: Any, chunks: int) -> float | None:
        """The error of a point on so many chunks, if it has been tried."""
        return self._known.get(self._key(dataclasses.asdict(numbers), chunks))

    def add(self, numbers: Any, chunks: int, error: float, block_flops: int) -> None:
        """Adds a trial and appends its line."""
        row: dict[str, Any] = {
            "numbers": dataclasses.asdict(numbers),
            "chunks": chunks,
            "error": error,
            "block_flops": block_flops,
        }
        self._known[self._key(row["numbers"], chunks)] = error
        self._log.append(row)
