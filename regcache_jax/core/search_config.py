"""What a search of registers is told: space, candidates, objective, effort, budgets. For Python and the command line alike."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from regcache_jax.core.objective import Objective, checked, name_of, reads_patches
from regcache_jax.core.options import check_fields, option, spelt_right


@spelt_right
@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """What is searched, and how long. The paper's ranges are start in max(0, l_q - 3)..l_q, copies 1..15, count 0..10.

    Raises UserError for values out of bounds and unknown words."""

    # Space: a coarse grid; moves go between its values and beyond.
    copies: tuple[float, ...] = option("Copies of a register in the coarse grid.", (1.0, 2.5, 6.0, 15.0), above=0)
    delete_counts: tuple[int, ...] | None = option(
        "Deleted tokens in the coarse grid, beside none; by default 3,8, and none where patch tokens are read.",
        None,
        least=0,
    )
    back: int = option("How far before the sensitive block registers may start.", 3, unit="blocks", least=0)
    sensitive_block: int | None = option("The sensitive block, where it is known.", None)
    registers: tuple[int, ...] = option("Numbers of registers to try.", (1, 2), least=1)
    align: int | None = option(
        "Delete counts that leave whole tiles of so many rows (TPU: 8).", None, unit="rows", least=1
    )
    # Candidates: one an image at most, or ordinary tokens would be among them.
    candidates: int = option("How many candidates are averaged.", 100, least=1)
    class_token: bool = option("The class token may be a candidate too.", False)
    form: Literal["kv", "token"] = option("Average the candidates' keys and values, or their hidden states.", "kv")
    position: Literal["source", "none"] = option(
        "Under rotary positions a cached key is its source's as attention saw it, or before its position turned it.",
        "source",
    )
    objective: Objective = option("What an error is: a word of `core.objective`, or a function.", "pooled")
    # Pictures.
    verify_share: float = option("Share of the pictures that verify what comes out.", 0.25, above=0)
    draws: int = option("Draws of the others: each gives scales from some and scores the rest.", 4, least=2)
    seed: int = option("Of who verifies, and of the order of the others.", 0)
    # Effort.
    chunk: int = option("Pictures a step, at most.", 32, unit="pictures", least=1)
    first_share: float = option("Share of the pictures that scores the whole grid.", 1 / 6, above=0)
    keep: float = option("Part of the points that each rung keeps.", 0.2, above=0)
    growth: int = option("How many times more pictures the next rung sees.", 2, least=2)
    rounds: int = option("Rounds of moves around the best point.", 2, least=0)
    memory_limit: int = option("Of the hidden states that are kept.", 4 << 30, unit="bytes", least=1)
    # Budgets end the search early, with the best plan that the whole set has scored.
    max_trials: int | None = option(
        "Stop after so many trials with the best plan so far.", None, unit="trials", least=1
    )
    max_minutes: float | None = option("The same after so many minutes.", None, unit="minutes", above=0)
    max_block_flops: float | None = option("The same after so many operations.", None, unit="operations", above=0)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "objective", checked(self.objective))

    @property
    def counts(self) -> tuple[int, ...]:
        """The delete counts of the coarse grid. A deleted patch is lost to those who read patches, so there deletion must be asked for."""
        if self.delete_counts is not None:
            return self.delete_counts
        return (0,) if reads_patches(self.objective) else (0, 3, 8)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; a function by its name."""
        return {**dataclasses.asdict(self), "objective": name_of(self.objective), "delete_counts": self.counts}

    def settings(self) -> dict[str, Any]:
        """What a trial's error and the search's way depend on: all but budgets and memory."""
        return {name: value for name, value in self.to_json().items() if not name.startswith(("max_", "memory"))}
