"""Which pictures of a reference set do what: some verify; of the others each draw gives scales from some and scores the rest.

The pictures that verify are seen by no candidate, no scale and no score. The others stand in a seeded order and in groups; groups go
round the draws, and a draw scores its own groups under scales from all others. So a trial over every draw costs what one run over the
set costs, and no picture is scored under scales that it helped to find.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from regcache_jax.core.errors import UserError

FEWEST_IMAGES = 4
"""A picture that verifies, and more than one draw of the others."""
FIRST_RUNG = 16
"""Pictures, at least, that the first look at a plan takes (fewer where there are fewer)."""


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

    def chunk(self, batch_size: int) -> int:
        """Pictures that run at once: the largest part of a group that a batch holds."""
        return max(size for size in range(1, min(batch_size, self.group) + 1) if self.group % size == 0)


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
