"""Dataclasses that are pytrees, Flax's, with the one thing that type checkers are not told: `replace`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self


class Struct:
    """Stands below a `flax.struct.dataclass`, which gives it `replace`."""

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> Self:
            """The same with some fields changed."""
