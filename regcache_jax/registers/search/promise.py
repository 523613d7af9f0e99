"""What a plan's file promises, and whether an encoder that was quantised with the plan keeps it.

A search has judged its plan with scales from some pictures, on others. `quantize` takes the same pictures by default, or splits those
that it is given by the same shares, and measures the encoder that it writes on the held-out ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from regcache_jax.core.objective import OLD_NAMES
from regcache_jax.core.scheme import Estimator, Scheme
from regcache_jax.registers.search.claim import Claim
from regcache_jax.registers.search.parts import FEWEST_IMAGES, Parts, split
from regcache_jax.registers.search.result import pictures_hash

SPREADS = 2.0
"""A promise is broken where the error is so many of its spreads beyond it."""


@dataclasses.dataclass(frozen=True)
class Promise:
    """The calibration that a plan was judged with, and the error that was found."""

    images: int
    held_out: int
    verify_share: float
    seed: int
    estimator: Estimator
    hash: str
    scheme: str
    objective: str
    claim: Claim

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Promise | None:
        """What the metadata of a plan promises; None where a plan was made without a search."""
        if not {"calibration", "claim", "scheme"} <= set(metadata):
            return None
        given = {name: value for name, value in metadata["calibration"].items() if name != "draws"}
        objective = metadata.get("objective", "pooled")
        return cls(
            **given,
            scheme=Scheme.from_json(metadata["scheme"]).name,
            objective=OLD_NAMES.get(objective, objective),
            claim=Claim(**metadata["claim"]),
        )

    @property
    def pictures(self) -> int:
        """How many the search was given."""
        return self.images + self.held_out

    def parts(self, images: Float[np.ndarray, "n Y X 3"]) -> Parts:
        """Which of some pictures calibrate and which are held out: split as the search did (none are held out of a handful)."""
        if len(images) < FEWEST_IMAGES:
            return Parts(np.arange(len(images)), np.arange(0))
        return split(len(images), self.verify_share, self.seed)

    def taken(self, calibrating: Float[np.ndarray, "m Y X 3"], held_out: int) -> str:
        """Which pictures were taken, in one line."""
        if pictures_hash(calibrating) == self.hash:
            return f"calibrated on the {len(calibrating)} pictures that the plan was judged with"
        return (
            f"other pictures than the {self.images} that the plan was judged with: {len(calibrating)} of them calibrate, "
            f"{held_out} are held out"
        )

    def compared(self, found: Claim) -> str:
        """The error that was found beside the one that was promised."""
        return f"error {found.sentence()}; the search promised {self.claim.error:.3g} +- {self.claim.spread:.1g}"

    def speaks_of(self, objective: str) -> bool:
        """Whether the promise is of this error: an accuracy, or what a function gave, cannot be measured again here."""
        return objective == self.objective

    def broken(self, found: Claim, scheme: Scheme) -> str | None:
        """A warning where the same bits do worse than was promised."""
        if scheme.name != self.scheme or found.error <= self.claim.error + SPREADS * max(
            found.spread, self.claim.spread
        ):
            return None
        return (
            f"warning: the held-out error {found.error:.3g} is worse than the {self.claim.error:.3g} that the search promised; calibrate "
            "on the pictures of the search, or search again with these"
        )
