"""Histograms of what passes a site, streamed, and the ranges that four estimators read from them.

A batch's values are counted in bins of width 2**exponent / BINS, where 2**exponent is the first power of two above its
largest magnitude. Bins of two exponents nest, so histograms add up exactly, in any order, and memory does not grow with the set.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.spec import Protected
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.ops.integers import largest_integer

BINS = 2048
"""Bins on each side of zero: 16 a step of 8 bits where the range fills them."""

SMALLEST_EXPONENT, LARGEST_EXPONENT = -40, 128
"""Of bins; the largest is a float32's."""


class Counted(NamedTuple):
    """One batch at one site of one block, by token group (G = 1: all tokens alike)."""

    counts: Int[Array, "*L G bins"]
    exponent: Int[Array, "*L G"]
    lower: Float[Array, "*L G"]
    upper: Float[Array, "*L G"]


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts at one site of L blocks and G token groups; bin i covers (i - BINS + [0, 1)) * 2**exponent / BINS.

    `lower` and `upper` are the exact extremes, with zero between them."""

    counts: Int[np.ndarray, "L G bins"]
    exponent: Int[np.ndarray, "L G"]
    lower: Float[np.ndarray, "L G"]
    upper: Float[np.ndarray, "L G"]

    @classmethod
    def of(cls, counted: Counted) -> Histogram:
        """A batch's counts, on the host."""
        return cls(
            np.asarray(counted.counts, np.int64), np.asarray(counted.exponent),
            np.asarray(counted.lower), np.asarray(counted.upper),
        )  # fmt: skip

    def __add__(self, other: Histogram) -> Histogram:
        exponent = np.maximum(self.exponent, other.exponent)
        counts = [_coarsen(each.counts, exponent - each.exponent) for each in (self, other)]
        return Histogram(
            counts[0] + counts[1], exponent, np.minimum(self.lower, other.lower), np.maximum(self.upper, other.upper)
        )


def count(trace: BlockTrace, site: str, protected: Protected | None) -> Counted:
    """A collector: the histogram of one site over the tokens that are there, by token group if `protected` is given."""
    inputs = getattr(trace, site).astype(jnp.float32)
    batch, tokens = inputs.shape[:2]
    inputs = inputs.reshape(batch, tokens, -1)
    present = jnp.ones((batch, tokens), bool) if trace.present is None else trace.present
    position = jnp.arange(tokens, dtype=jnp.int32)
    if protected is None:
        groups, group = 1, jnp.zeros_like(position)
    else:
        groups = 3
        group = jnp.where(position < protected[0], 0, jnp.where(position < sum(protected), 1, 2))
    member = present[None] & (group == jnp.arange(groups, dtype=jnp.int32)[:, None])[:, None]  # [G, B, N]
    lower = jnp.min(jnp.where(member, jnp.min(inputs, axis=-1), 0.0), axis=(1, 2), initial=0.0)
    upper = jnp.max(jnp.where(member, jnp.max(inputs, axis=-1), 0.0), axis=(1, 2), initial=0.0)
    exponent = jnp.maximum(jnp.frexp(jnp.maximum(-lower, upper))[1].astype(jnp.int32), SMALLEST_EXPONENT)
    in_bins = jnp.floor(inputs * (BINS * jnp.exp2(-exponent[group].astype(jnp.float32)))[None, :, None])
    index = jnp.clip(in_bins.astype(jnp.int32) + BINS, 0, 2 * BINS - 1) + group[None, :, None] * (2 * BINS)
    weight = jnp.broadcast_to(present[..., None], inputs.shape).astype(jnp.int32)
    counts = jnp.zeros(groups * 2 * BINS, jnp.int32).at[index].add(weight)
    return Counted(counts.reshape(groups, 2 * BINS), exponent, lower, upper)


def _coarsen(counts: Int[np.ndarray, "L G bins"], shift: Int[np.ndarray, "L G"]) -> Int[np.ndarray, "L G bins"]:
    """The same counts in bins that are 2**shift times as wide."""
    result = np.zeros_like(counts)
    bins = np.arange(2 * BINS) - BINS
    for cell in np.ndindex(shift.shape):
        np.add.at(result[cell], (bins >> min(int(shift[cell]), 30)) + BINS, counts[cell])
    return result


def bounds(
    histogram: Histogram, estimator: str, percentile: float, levels: Int[np.ndarray, "L"], symmetric: bool
) -> tuple[Float[np.ndarray, "L G"], Float[np.ndarray, "L G"]]:
    """Lower and upper end of the range of every block and group. `levels`: the largest integer, a block.

    `absmax`: the extremes. `percentile`: what holds that share of the values (the same share cut off at both ends if not
    symmetric). `mse`: the least squared error of rounding and clipping. `entropy`: the least Kullback-Leibler divergence of the
    clipped and rounded magnitudes from what came in (TensorRT's calibration). None goes beyond the extremes."""
    lower, upper = np.array(histogram.lower, np.float64), np.array(histogram.upper, np.float64)
    if symmetric:
        upper = np.maximum(-lower, upper)
        lower = -upper
    if estimator == "absmax":
        return lower.astype(np.float32), upper.astype(np.float32)
    for cell in np.ndindex(lower.shape):
        counts = histogram.counts[cell]
        if counts.sum() == 0 or lower[cell] == upper[cell]:
            continue
        edges = (np.arange(2 * BINS + 1) - BINS) * 2.0 ** int(histogram.exponent[cell]) / BINS
        extremes, largest = (float(lower[cell]), float(upper[cell])), int(levels[cell[0]])
        if estimator == "percentile":
            low, high = _percentile(counts, edges, percentile / 100, symmetric)
        elif estimator == "mse":
            low, high = _least_error(counts, edges, extremes, largest, symmetric)
        else:
            threshold = _least_divergence(_magnitudes(counts), largest + 1) * edges[-1] / BINS
            low, high = -threshold, threshold
        lower[cell], upper[cell] = max(low, extremes[0]), min(high, extremes[1])
    return lower.astype(np.float32), upper.astype(np.float32)


def _magnitudes(counts: Int[np.ndarray, "bins"]) -> Int[np.ndarray, "half"]:
    """Counts of |x|."""
    return counts[BINS:] + counts[:BINS][::-1]


def _percentile(
    counts: Int[np.ndarray, "bins"], edges: Float[np.ndarray, "edges"], share: float, symmetric: bool
) -> tuple[float, float]:
    """The outer edges of the bins in which the share is reached."""
    total = counts.sum()
    if symmetric:
        reached = np.searchsorted(np.cumsum(_magnitudes(counts)), share * total)
        threshold = edges[BINS + min(int(reached), BINS - 1) + 1]
        return -threshold, threshold
    tail = (1 - share) / 2 * total
    high = len(counts) - int(np.searchsorted(np.cumsum(counts[::-1]), tail, side="right"))
    low = int(np.searchsorted(np.cumsum(counts), tail, side="right"))
    return min(edges[min(low, len(counts))], 0.0), max(edges[max(high, 0)], 0.0)


def _least_error(
    counts: Int[np.ndarray, "bins"],
    edges: Float[np.ndarray, "edges"],
    extremes: tuple[float, float],
    largest: int,
    symmetric: bool,
) -> tuple[float, float]:
    """Shrinks the range (both ends by one factor; if not symmetric then each in turn) while the squared error falls."""
    there = np.nonzero(counts)[0]
    values, weight = (edges[there] + edges[there + 1]) / 2, counts[there].astype(np.float64)
    factors = 2.0 ** (-np.arange(0, 97) / 8)

    def error(low: float, high: float) -> float:
        step = (high - low) / (2 * largest)
        rounding = np.where(np.abs(values) < step / 2, values**2, step**2 / 12)
        clipped = np.where(values > high, (values - high) ** 2, np.where(values < low, (values - low) ** 2, rounding))
        return float(weight @ clipped)

    low, high = min(((f * extremes[0], f * extremes[1]) for f in factors), key=lambda ends: error(*ends))
    if not symmetric:
        for _ in range(2):
            high = min((f * extremes[1] for f in factors), key=lambda end: error(low, end))
            low = min((f * extremes[0] for f in factors), key=lambda end: error(end, high))
    return low, high


def _least_divergence(counts: Int[np.ndarray, "half"], levels: int) -> float:
    """How many bins of |x| to keep so that the rounded distribution is nearest to the clipped one."""
    counts = counts.astype(np.float64)
    last = int(np.nonzero(counts)[0][-1]) + 1
    best, chosen = np.inf, float(last)
    for kept in np.unique(np.geomspace(min(levels, last), last, 64).astype(int)):
        clipped = counts[:kept].copy()
        clipped[-1] += counts[kept:].sum()
        level = np.round((np.arange(kept) + 0.5) * (levels - 1) / kept).astype(int)
        filled = counts[:kept] > 0
        mass = np.bincount(level, weights=counts[:kept], minlength=levels)
        cells = np.bincount(level, weights=filled, minlength=levels)
        rounded = np.where(filled, (mass / np.maximum(cells, 1))[level], 0.0)
        seen = clipped > 0
        p, q = clipped / clipped.sum(), rounded / max(rounded.sum(), 1.0)
        divergence = float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))
        if divergence < best:
            best, chosen = divergence, float(kept)
    return chosen


def scale_and_zero_point(
    lower: Float[np.ndarray, "*L"], upper: Float[np.ndarray, "*L"], levels: Int[np.ndarray, "*#L"]
) -> tuple[Float[np.ndarray, "*L"], Int[np.ndarray, "*L"]]:
    """Scale and zero point with which lower..upper fills -levels..levels: value = (stored - zero_point) * scale.

    A range that is symmetric has zero point 0; a range of zero has scale 1."""
    span = upper - lower
    scale = np.where(span > 0, span / (2 * levels), 1.0).astype(np.float32)
    zero_point = -np.round((upper + lower) / (2 * scale)).astype(np.int32)
    return scale, zero_point


def largest_integers(bits: list[int]) -> Int[np.ndarray, "L"]:
    """127, 31 and 7 for 8, 6 and 4 bits, a block."""
    return np.array([largest_integer(each) for each in bits])
