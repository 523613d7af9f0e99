"""What methods measure of every site's input tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from regcache_jax.core.scheme import SITES
from regcache_jax.core.spec import Protected
from regcache_jax.encoders.blocks import BlockTrace

SAMPLED_TOKENS = 512
SEED = 0


def site_tokens(trace: BlockTrace, site: str) -> tuple[Float[Array, "T C"], Bool[Array, "T"]]:
    """A site's input as rows of channels (absent tokens are zero), and which rows are there."""
    inputs = getattr(trace, site).astype(jnp.float32)
    rows = inputs.reshape(inputs.shape[0] * inputs.shape[1], -1)
    present = jnp.ones(rows.shape[:1], bool) if trace.present is None else trace.present.reshape(-1)
    return jnp.where(present[:, None], rows, 0.0), present


@dataclasses.dataclass(frozen=True)
class OfTokens:
    """A statistic of every site: `measure` of its tokens and of which of them are there, combined over batches by `combine`
    (None: the first batch's alone), then `finish`."""

    measure: Callable[[Float[Array, "T C"], Bool[Array, "T"]], tuple[Array, ...]]
    combine: Callable[[Array, Array], Array] | None
    finish: Callable[..., Array]

    def of_block(self, trace: BlockTrace, protected: Protected) -> dict[str, PyTree]:
        """Of one block."""
        return {site: self.measure(*site_tokens(trace, site)) for site in SITES}

    def add(self, total: dict[str, PyTree] | None, batch: dict[str, PyTree]) -> dict[str, PyTree]:
        """Both combined."""
        if total is None:
            return batch
        return total if self.combine is None else jax.tree.map(self.combine, total, batch)

    def result(self, total: dict[str, PyTree]) -> dict[str, Array]:
        """By site."""
        return {site: self.finish(*each) for site, each in total.items()}


def _extremes(rows: Float[Array, "T C"], present: Bool[Array, "T"]) -> tuple[Array]:
    hidden = ~present[:, None]
    ends = [jnp.max(jnp.where(hidden, -jnp.inf, side), axis=0) for side in (-rows, rows)]
    return (jnp.stack(ends),)


def _absolute_sum(rows: Float[Array, "T C"], present: Bool[Array, "T"]) -> tuple[Array, Array]:
    return jnp.sum(jnp.abs(rows), axis=0), jnp.sum(present.astype(jnp.float32))


def _gram(rows: Float[Array, "T C"], present: Bool[Array, "T"]) -> tuple[Array, Array]:
    return rows.T @ rows, jnp.sum(present.astype(jnp.float32))


def _mean(total: Float[Array, "L ..."], count: Float[Array, "L"]) -> Float[Array, "L ..."]:
    return total / count.reshape(-1, *(1,) * (total.ndim - 1))


def sampled_rows(total: int) -> Int[np.ndarray, "S"]:
    """Which tokens of a batch are sampled: drawn at random, as an even stride that divides the tokens of an image would take the
    same few positions of all images, its left border say."""
    return np.sort(np.random.default_rng(SEED).choice(total, min(total, SAMPLED_TOKENS), replace=False))


def _some(rows: Float[Array, "T C"], present: Bool[Array, "T"]) -> tuple[Float[Array, "S C"]]:
    return (rows[sampled_rows(len(rows))],)


STATISTICS = {
    "extremes": OfTokens(_extremes, jnp.maximum, lambda ends: ends * jnp.array([[-1.0], [1.0]])),
    "magnitudes": OfTokens(_absolute_sum, jnp.add, _mean),
    "moments": OfTokens(_gram, jnp.add, _mean),
    "tokens": OfTokens(_some, None, lambda rows: rows),
}
"""Least and largest value of every channel `[L, 2, C]`; mean magnitude of every channel `[L, C]`; mean over tokens of the outer product
of a site's input with itself, half the Hessian of a layer's squared error `[L, C, C]`; up to `SAMPLED_TOKENS` rows of the first
batch `[L, S, C]`."""
