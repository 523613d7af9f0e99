"""What is searched: one point is six numbers; a coarse grid covers the space, and moves change one number of a point."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import reads_patches
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.core.spec import ImageSpec

MOVES = 14
"""Points that differ from another in one number, at most."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One point of the search. `start == stop` sees no register; `delete_count == 0` deletes nothing."""

    start: int
    stop: int
    copies: float
    delete_block: int
    delete_count: int
    num_registers: int = 1


@dataclasses.dataclass(frozen=True)
class Space:
    """The points of one search, for an image tower whose sensitive block is known."""

    config: SearchConfig
    spec: ImageSpec
    sensitive_block: int

    def __post_init__(self) -> None:
        """Raises UserError for a sensitive block or a delete count that the encoder does not have."""
        patches, largest = self.spec.num_patches, max(self.config.counts, default=0)
        if not 0 <= self.sensitive_block < self.num_blocks:
            raise UserError(
                f"sensitive_block must be 0..{self.num_blocks - 1}, got {self.sensitive_block}; `regcache inspect` suggests one"
            )
        if largest and self.spec.max_patches is not None and reads_patches(self.config.objective):
            raise UserError(
                "patches of pictures of any shape (NaFlex) are read without deletion; search with delete_counts 0, or for pooled"
            )
        if largest >= patches:
            raise UserError(
                f"delete_counts must be 0..{patches - 1} (the encoder has {patches} patches), got {largest}"
            )

    @property
    def num_blocks(self) -> int:
        """L."""
        return self.spec.blocks.num_blocks

    @property
    def starts(self) -> tuple[int, ...]:
        """Blocks where registers may enter (paper, step 2)."""
        return tuple(range(max(0, self.sensitive_block - self.config.back), self.sensitive_block + 1))

    @property
    def entries(self) -> tuple[int, ...]:
        """Blocks where a plan may begin: the starts, and one more for deletion after l_q."""
        return (*self.starts, min(self.sensitive_block + 1, self.num_blocks - 1))

    @property
    def delete_counts(self) -> tuple[int, ...]:
        """All counts that may be deleted: any, or none and those that leave whole tiles (with a row for a register); none alone where the
        coarse grid deletes nothing."""
        if not any(self.config.counts):
            return (0,)
        tile, tokens = self.config.align or 1, self.spec.num_tokens
        counts = range(1, self.spec.num_patches)
        return (0, *(count for count in counts if (tokens - count + 1) % tile == 0))

    @property
    def nothing(self) -> Numbers:
        """The point without registers and deletion."""
        return Numbers(self.sensitive_block, self.sensitive_block, 1.0, self.sensitive_block, 0)

    def grid(self) -> list[Numbers]:
        """The coarse grid: registers from every start with every number of copies and every delete count, and deletion alone."""
        wanted = (min(self.delete_counts, key=lambda have: abs(have - count)) for count in self.config.counts)
        counts = tuple(dict.fromkeys([0, *wanted]))
        points = [
            dataclasses.replace(self.nothing, start=start, stop=self.num_blocks, copies=copies, delete_count=count)
            for start, copies, count in itertools.product(self.starts, self.config.copies, counts)
        ]
        return points + [dataclasses.replace(self.nothing, delete_count=count) for count in counts]

    def moves(self, best: Numbers) -> list[Numbers]:
        """Points that differ from the best one in one number."""
        changes: list[dict[str, Any]] = []
        if best.stop > best.start:
            changes += [{"copies": float(f"{best.copies * factor:.3g}")} for factor in (0.6, 0.8, 1.25, 1.6)]
            stops = (best.start + 1, self.sensitive_block + 1, self.num_blocks - 1, self.num_blocks)
            changes += [{"stop": stop} for stop in stops if stop > best.start]
            changes += [{"start": start} for start in (best.start - 1, best.start + 1) if start in self.starts]
            changes += [{"num_registers": count} for count in self.config.registers]
        place = self.delete_counts.index(best.delete_count)
        changes += [{"delete_count": count} for count in self.delete_counts[max(0, place - 1) : place + 2]]
        if best.delete_count:
            blocks = (best.delete_block - 1, best.delete_block + 1)
            changes += [{"delete_block": block} for block in blocks if block in self.entries]
        points = [dataclasses.replace(best, **change) for change in changes]
        return [point for point in dict.fromkeys(points) if point != best and point.start <= point.stop]

    def rungs(self, first: int, num_images: int) -> list[int]:
        """Images that each rung of the successive halving takes: `first`, then `growth` times more, and all where half is passed."""
        rungs = [min(first, num_images)]
        while rungs[-1] < num_images:
            larger = rungs[-1] * self.config.growth
            rungs.append(larger if 2 * larger <= num_images else num_images)
        return rungs

    def kept(self, num_points: int) -> int:
        """How many of a rung's points go on to the next."""
        return min(num_points, max(2, round(num_points * self.config.keep)))
