"""How sure a figure is: intervals that hold the true value in 95 of 100 samples of pictures."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Interval = tuple[float, float]
DEVIATIONS = 1.959964
"""Standard deviations on either side of the mean within which 95 % of a normal distribution lies."""
DRAWS = 1000


def binomial(hits: int, seen: int) -> Interval:
    """Wilson's interval of a share, `hits` of `seen` (Wilson 1927)."""
    share, square = hits / seen, DEVIATIONS**2
    middle = (share + square / (2 * seen)) / (1 + square / seen)
    half = DEVIATIONS * np.sqrt(share * (1 - share) / seen + square / (4 * seen**2)) / (1 + square / seen)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def bootstrap(values: Float[np.ndarray, "n"], seed: int = 0) -> Interval:
    """The bootstrap's percentile interval of a mean: `DRAWS` samples with replacement, as large as the set."""
    rng = np.random.default_rng(seed)
    means = [float(np.mean(values[rng.integers(0, len(values), len(values))])) for _ in range(DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
