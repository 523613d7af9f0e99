"""Calibration: a float run that returns the range of every site, with the plan in place (registers change the ranges)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import INPUTS, SITES, Scheme
from regcache_jax.core.spec import Protected
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.ops.integers import scale_of
from regcache_jax.quantization.gather import gather

Ranges = dict[str, Float[Array, "..."]]
"""Largest magnitude a site: float32 `[L]`, or `[L, 3]` for class token, trained registers and patches apart."""


def site_range(trace: BlockTrace, site: str, protected: Protected | None) -> Float[Array, "..."]:
    """Largest magnitude at one site of one block over the tokens that are there; by token group if `protected` is given."""
    inputs = getattr(trace, site)
    magnitude = jnp.max(jnp.abs(inputs), axis=tuple(range(2, inputs.ndim))).astype(jnp.float32)
    if trace.present is not None:
        magnitude = jnp.where(trace.present, magnitude, 0.0)
    if protected is None:
        return jnp.max(magnitude)
    first, second = protected.class_tokens, sum(protected)
    groups = magnitude[:, :first], magnitude[:, first:second], magnitude[:, second:]
    return jnp.stack([jnp.max(group, initial=0.0) for group in groups])


def range_collectors(activations: str, protected: Protected) -> dict[str, Callable[[BlockTrace], Float[Array, "..."]]]:
    """Collectors for `run_blocks` that return every site's range, named as the sites."""
    groups = protected if activations == "group" else None
    return {site: functools.partial(site_range, site=site, protected=groups) for site in SITES}


@dataclasses.dataclass(frozen=True)
class LargestMagnitudes:
    """A statistic: the range of every site."""

    activations: str

    def of_block(self, trace: BlockTrace, protected: Protected) -> Ranges:
        """Those of one block."""
        return {site: collector(trace) for site, collector in range_collectors(self.activations, protected).items()}

    def add(self, total: Ranges | None, batch: Ranges) -> Ranges:
        """The larger of both."""
        return batch if total is None else jax.tree.map(jnp.maximum, total, batch)

    def result(self, total: Ranges) -> Ranges:
        """The same, finite."""
        check_finite(total)
        return total


def calibrate(encoder: Encoder, batches: Iterable[Float[Array | np.ndarray, "_ Y X 3"]], scheme: Scheme) -> Ranges:
    """Ranges of a float encoder's sites over the calibration set, its plan in place. Raises UserError for an empty set, for
    an encoder that is quantised already, and where a range is not finite (which names block and site)."""
    return gather(encoder, batches, {"ranges": LargestMagnitudes(scheme.activations)})[0]["ranges"]


def check_finite(ranges: Ranges) -> None:
    """Raises UserError naming the first block and site whose range is NaN or infinite."""
    bad = {
        site: ~np.isfinite(np.asarray(values)).reshape(len(values), -1).all(axis=1) for site, values in ranges.items()
    }
    places = [(int(np.argmax(blocks)), INPUTS.index(site)) for site, blocks in bad.items() if blocks.any()]
    if places:
        block, site = min(places)  # in the order in which a picture passes
        raise UserError(
            f"activations at site {INPUTS[site]} of block {block} are not finite; the weights or the pictures hold NaN or infinity"
        )


def scales_from_ranges(ranges: Ranges, bits: int) -> Ranges:
    """Symmetric scales: the largest magnitude maps to 2**(bits - 1) - 1; a range of zero gets scale 1."""
    return {site: scale_of(values, bits) for site, values in ranges.items()}
