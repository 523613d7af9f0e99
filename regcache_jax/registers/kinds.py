"""Kinds of outliers, and how far each stands out of an encoder: at its line it is called one, at half of that it is worth measuring."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from regcache_jax.registers.inspect import SINK_RATIO, Profile

CHANNEL_RATIO = 8.0
"""A channel is an outlier where it stands this many times above the 95th percentile of the channels, in ordinary tokens."""

OUTLIERS = ("patch sinks", "class-token outlier", "trained-register outlier", "channel outlier")
KINDS = (*OUTLIERS, "none")

NOTICED = 0.5
"""What stands so far towards its line is listed and measured: a class token at 9.8 times the median patch costs what one at 10 costs."""


class Standing(NamedTuple):
    """How far one kind stands out at every place and block, and from where on it is called an outlier."""

    ratio: Float[np.ndarray, "P L"]
    line: float

    @property
    def is_outlier(self) -> bool:
        """Whether it reaches the line anywhere."""
        return bool((self.ratio >= self.line).any())

    @property
    def is_noticed(self) -> bool:
        """Whether it comes near the line anywhere."""
        return bool((self.ratio >= NOTICED * self.line).any())


def standings(profile: Profile) -> dict[str, Standing]:
    """Every kind's, in the order of `OUTLIERS`."""
    tokens = zip(OUTLIERS, ("patch", "class", "register"), strict=False)
    return {
        **{kind: Standing(profile.ratio(group), SINK_RATIO) for kind, group in tokens},
        OUTLIERS[3]: Standing(profile.channel_ratio, CHANNEL_RATIO),
    }
