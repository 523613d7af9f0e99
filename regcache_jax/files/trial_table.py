"""The trial table: one JSON line a trial, appended as it ends, read again by a search that goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.files.paths import write_whole


class TrialTable:
    """Trials of one search, in memory and (where a path is given) in a file that survives a kill.

    The first line holds the search's fingerprint; a last line that was cut short is dropped. Raises UserError for a
    table of another search."""

    def __init__(self, path: epath.PathLike | None, fingerprint: str) -> None:
        self.path = None if path is None else epath.Path(path)
        self.rows: list[dict[str, Any]] = []
        self._known: dict[str, list[float]] = {}
        header = json.dumps({"search": fingerprint}) + "\n"
        self._text = header
        if self.path is None:
            return
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(header)
            return
        lines = self.path.read_text().splitlines(keepends=True)
        if lines and lines[0] != header and lines[0].endswith("\n"):
            raise UserError(
                f"{self.path} belongs to another search (encoder, images, scheme or settings differ); remove it"
            )
        whole = []
        for line in lines[1:]:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if not line.endswith("\n"):
                break
            whole.append(line)
            self._remember(row)
        self._text += "".join(whole)
        if self._text != "".join(lines):
            write_whole(self.path, self._text.encode())

    @staticmethod
    def _key(numbers: dict[str, Any], images: int) -> str:
        return json.dumps([numbers, images], sort_keys=True)

    def _remember(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._known[self._key(row["numbers"], row["images"])] = row["draws"]

    def find(self, numbers: Any, images: int) -> list[float] | None:
        """The errors of a point under each draw, on so many images, if it has been tried (the last time it was)."""
        return self._known.get(self._key(dataclasses.asdict(numbers), images))

    def add(self, numbers: Any, images: int, error: float, draws: Sequence[float], block_flops: int) -> None:
        """Adds a trial and appends its line; `draws` are fewer than there were where it was given up early."""
        row = {
            "numbers": dataclasses.asdict(numbers),
            "images": images,
            "error": error,
            "draws": list(draws),
            "block_flops": block_flops,
        }
        self._remember(row)
        line = json.dumps(row) + "\n"
        self._text += line
        if self.path is None:
            return
        if "://" in str(self.path):
            self.path.write_text(
                self._text
            )  # a store of objects cannot append, but writes an object whole or not at all
        else:
            with self.path.open("a") as file:
                file.write(line)
