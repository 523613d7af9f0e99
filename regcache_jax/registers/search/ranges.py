"""What a trial's static scales come from, kept in units so that the scales of any draw of calibration images are cheap.

Where the extremes are enough they are kept for each image apart, and a draw is a maximum. Other estimators need histograms; they are
kept for each chunk of images apart, and a draw is a sum.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.spec import Protected
from regcache_jax.encoders.blocks import BlockTrace, Collectors
from regcache_jax.quantization.calibrate import Ranges, check_finite, range_collectors, scales_from_ranges
from regcache_jax.quantization.calibration import Calibration, counters
from regcache_jax.quantization.histogram import Counted, Histogram


def collectors(scheme: Scheme, protected: Protected, real: Bool[Array, "B"]) -> Collectors:
    """For `run_blocks`: every site's extremes in each image apart, or its histogram over the images that are `real` (rows
    that fill a chunk up are not)."""
    if scheme.estimator == "absmax":
        each = range_collectors(scheme.activations, protected)
        return {site: functools.partial(_apart, collector=collector) for site, collector in each.items()}
    counts = counters(SITES, protected if scheme.activations == "group" else None)
    return {site: functools.partial(_of_real, collector=collector, real=real) for site, collector in counts.items()}


def _apart(trace: BlockTrace, collector: Callable[[BlockTrace], Array]) -> Float[Array, "B ..."]:
    return jax.vmap(collector)(jax.tree.map(lambda leaf: leaf[:, None], trace))


def _of_real(trace: BlockTrace, collector: Callable[[BlockTrace], Counted], real: Bool[Array, "B"]) -> Counted:
    present = jnp.ones(trace.hidden.shape[:2], bool) if trace.present is None else trace.present
    return collector(trace._replace(present=present & real[:, None]))


@dataclasses.dataclass(frozen=True)
class Extremes:
    """Largest magnitudes a site, `[L, n]` or (token groups) `[L, n, 3]`; a unit is an image."""

    sites: dict[str, Float[np.ndarray, "L n *G"]]

    @property
    def num_units(self) -> int:
        """What a draw draws from."""
        return self.sites[SITES[0]].shape[1]

    def of(self, units: slice) -> Extremes:
        """Those of some units."""
        return Extremes({site: values[:, units] for site, values in self.sites.items()})

    def followed_by(self, later: Extremes | Counts, first: int) -> Extremes:
        """These blocks before `first`, and from there on those of `later`, which may hold fewer units."""
        assert isinstance(later, Extremes)
        units = later.num_units
        parts = {site: [self.sites[site][:first, :units], own[first:]] for site, own in later.sites.items()}
        return Extremes({site: np.concatenate(pair) for site, pair in parts.items()})

    def scales(self, scheme: Scheme, drawn: Int[np.ndarray, "m"] | None = None) -> Ranges:
        """Static scales from all units, or from those drawn."""
        taken = {site: values if drawn is None else values[:, drawn] for site, values in self.sites.items()}
        largest = {site: jnp.asarray(values.max(axis=1)) for site, values in taken.items()}
        return _quantised_sites(scales_from_ranges(largest, scheme.activation_bits), scheme)

    def check(self) -> None:
        """Raises UserError naming the first block and site with a value that is not finite."""
        check_finite({site: jnp.asarray(values) for site, values in self.sites.items()})


@dataclasses.dataclass(frozen=True)
class Counts:
    """Histograms a site; a unit is a chunk of images."""

    chunks: tuple[dict[str, Histogram], ...]

    @property
    def num_units(self) -> int:
        """What a draw draws from."""
        return len(self.chunks)

    def of(self, units: slice) -> Counts:
        """Those of some units."""
        return Counts(self.chunks[units])

    def followed_by(self, later: Extremes | Counts, first: int) -> Counts:
        """These blocks before `first`, and from there on those of `later`, which may hold fewer units."""
        assert isinstance(later, Counts)

        def join(before: Histogram, after: Histogram) -> Histogram:
            fields = [field.name for field in dataclasses.fields(Histogram)]
            return Histogram(
                *(np.concatenate([getattr(before, name)[:first], getattr(after, name)[first:]]) for name in fields)
            )

        pairs = zip(self.chunks, later.chunks, strict=False)
        return Counts(tuple({site: join(before[site], after[site]) for site in SITES} for before, after in pairs))

    def scales(self, scheme: Scheme, drawn: Int[np.ndarray, "m"] | None = None) -> Ranges:
        """Static scales from all units, or from those drawn, by the scheme's estimator."""
        taken = self.chunks if drawn is None else [self.chunks[int(unit)] for unit in drawn]
        total = {site: functools.reduce(operator.add, (counted[site] for counted in taken)) for site in SITES}
        found = Calibration(total, scheme.activations == "group", len(taken)).grids(scheme)
        return _quantised_sites({site: jnp.asarray(grid.scale) for site, grid in found.items()}, scheme)

    def check(self) -> None:
        """Raises UserError naming the first block and site with a value that is not finite."""
        for counted in self.chunks:
            check_finite({site: jnp.asarray(each.upper - each.lower) for site, each in counted.items()})


def joined(collected: Sequence[dict[str, Any]], lengths: Sequence[int], scheme: Scheme) -> Extremes | Counts:
    """What the collectors gave for consecutive chunks, of which so many rows are real."""
    if scheme.estimator != "absmax":
        return Counts(tuple({site: Histogram.of(one[site]) for site in SITES} for one in collected))
    rows = {
        site: [np.asarray(one[site], np.float32)[:, :length] for one, length in zip(collected, lengths, strict=True)]
        for site in SITES
    }
    return Extremes({site: np.concatenate(parts, axis=1) for site, parts in rows.items()})


def _quantised_sites(scales: Ranges, scheme: Scheme) -> Ranges:
    return {site: scale for site, scale in scales.items() if site not in scheme.float_sites}
