"""What a step of a method knows of the calibration set: all that was asked for, from one pass."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Grid
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.calibration import CalibratedGrids
from regcache_jax.quantization.gather import Statistic, gather
from regcache_jax.quantization.methods.fisher import Felt, felt_tokens
from regcache_jax.quantization.methods.statistics import STATISTICS

Batches = Sequence[Float[Array | np.ndarray, "_ _ _ 3"]]
"""The calibration set, which may be gone through several times."""

Need = Literal["extremes", "magnitudes", "moments", "tokens", "felt", "first", "images"]
"""Of `STATISTICS`; gradients (see `fisher`); the first batch; the whole set, to be gone through again."""


@dataclasses.dataclass(frozen=True)
class Observed:
    """What the calibration set showed of an encoder, statistics and grids by site; what nobody asked for is empty."""

    extremes: Mapping[str, Float[Array, "L 2 C"]] = dataclasses.field(default_factory=dict)
    magnitudes: Mapping[str, Float[Array, "L C"]] = dataclasses.field(default_factory=dict)
    moments: Mapping[str, Float[Array, "L C C"]] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, Float[Array, "L S C"]] = dataclasses.field(default_factory=dict)
    grids: Mapping[str, Grid] = dataclasses.field(default_factory=dict)
    felt: Felt | None = None
    first: Float[Array | np.ndarray, "_ _ _ 3"] | None = None
    images: Batches = ()


def observed(
    encoder: Encoder,
    batches: Iterable[Float[Array | np.ndarray, "_ _ _ 3"]],
    needs: Collection[Need],
    scheme: Scheme | None = None,
) -> Observed:
    """Goes through the calibration set once, or not at all where nothing is needed. `scheme`: one whose grids are wanted.

    Raises UserError for an empty set, and where a range is not finite."""
    wanted: dict[str, Statistic] = {need: STATISTICS[need] for need in STATISTICS if need in needs}
    if scheme is not None:
        wanted["grids"] = CalibratedGrids(scheme)
    if not needs and not wanted:
        return Observed()
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise UserError("calibration needs at least one image, got none")
    found = gather(encoder, itertools.chain([first], rest), wanted)[0] if wanted else {}
    felt = felt_tokens(encoder, first) if "felt" in needs else None
    images = batches if "images" in needs and isinstance(batches, Sequence) else ()
    return Observed(**found, felt=felt, first=first, images=images)
