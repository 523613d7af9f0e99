"""Which pictures of a reference set do what: some verify; of the others each draw gives scales from some and scores the rest.

The pictures that verify are seen by no candidate, no scale and no score. The others stand in a seeded order and in groups; groups go
round the draws, and a draw scores its own groups under scales from all others. So a trial over every draw costs what one run over the
set costs, and no picture is scored under scales that it helped to find.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from regcache_jax.core.errors import UserError

FEWEST_IMAGES = 4
"""A picture that verifies, and more than one draw of the others."""
FIRST_RUNG = 16
"""Pictures, at least, that the first look at a plan takes (fewer where there are fewer)."""
TOGETHER = 32
"""Pictures, at most, of all draws that give one another scales in one run, if a batch holds them: no more of a larger one."""


@dataclasses.dataclass(frozen=True)
class Draws:
    """How many draws there are, and how many consecutive pictures make a group."""

    count: int
    group: int

    def of(self, positions: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The draw that scores each position."""
        return positions // self.group % self.count

    def first_rung(self, num_images: int) -> int:
        """The fewest pictures among which every draw has a whole group."""
        return min(num_images, self.count * self.group)

    @property
    def share(self) -> int:
        """Pictures of each draw among those that give one another scales in one run: a part of a group."""
        fitting = (size for size in range(1, TOGETHER // self.count + 1) if self.group % size == 0)
        return max(fitting, default=1)

    def together(self, batch_size: int) -> bool:
        """Whether a batch holds a share of every draw."""
        return 1 < self.count <= batch_size // self.share

    def chunk(self, batch_size: int) -> int:
        """Pictures of one draw that run at once: the largest part of a group that a batch holds, for every draw where it can."""
        step, most = (self.share, batch_size // self.count) if self.together(batch_size) else (1, batch_size)
        return max(size for size in range(step, min(most, self.group) + 1, step) if self.group % size == 0)

    def others(self, positions: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n n"]:
        """For each position those that give it scales in one run: those of the other draws' pictures that stand at its share's place."""
        draws, turn = self.of(positions), positions // (self.group * self.count)
        place = turn * self.group + positions % self.group // self.share
        return (place[:, None] == place) & (draws[:, None] != draws)


def make_draws(num_images: int, *, count: int = 4, first_share: float = 1 / 6) -> Draws:
    """Draws over so many pictures, such that the first rung is about a share of them."""
    count = max(1, min(count, num_images))
    wanted = max(FIRST_RUNG, round(num_images * first_share)) // count
    group = max(1, min(wanted, num_images // count))
    step = next((step for step in (32, 8, 4) if group >= step), 1)  # whole batches
    return Draws(count, group - group % step)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Numbers of the pictures that are worked with (in the order in which they are looked at) and of those that verify."""

    working: Int[np.ndarray, "m"]
    verifying: Int[np.ndarray, "k"]

    def sentence(self) -> str:
        """Who does what, in one line."""
        return f"{len(self.working)} of the pictures give scales and score in turn, {len(self.verifying)} verify what comes out"


def split(num_images: int, verify_share: float, seed: int) -> Parts:
    """Parts a set by a share and a seed. Raises UserError for too few pictures."""
    if num_images < FEWEST_IMAGES:
        raise UserError(
            f"a search needs at least {FEWEST_IMAGES} images (some give scales, some score, one verifies), got {num_images}; "
            "256 or more are sensible"
        )
    order = np.random.default_rng(seed).permutation(num_images)
    num_verifying = max(1, round(num_images * verify_share))
    return Parts(order[num_verifying:], np.sort(order[:num_verifying]))
