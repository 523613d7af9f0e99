"""What methods measure: statistics of every site's input tokens, streamed over the calibration set with the plan in place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.scheme import SITES
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.vision import image_features
from regcache_jax.quantization.methods.method import Batches

Statistic = Callable[[Float[Array, "T C"], Bool[Array, "T"]], Any]
"""From the tokens of one site of one block of one batch, and which of them are there, to arrays."""

SAMPLED_TOKENS = 512
SEED = 0


def site_tokens(trace: BlockTrace, site: str) -> tuple[Float[Array, "T C"], Bool[Array, "T"]]:
    """A site's input as rows of channels (absent tokens are zero), and which rows are there."""
    inputs = getattr(trace, site).astype(jnp.float32)
    rows = inputs.reshape(inputs.shape[0] * inputs.shape[1], -1)
    present = jnp.ones(rows.shape[:1], bool) if trace.present is None else trace.present.reshape(-1)
    return jnp.where(present[:, None], rows, 0.0), present


@functools.partial(jax.jit, static_argnames=("spec", "statistic"))
def _batch(params: Any, images: Any, plan: Any, *, spec: Any, statistic: Statistic) -> dict[str, Any]:
    def collector(trace: BlockTrace, site: str) -> Any:
        return statistic(*site_tokens(trace, site))

    collect = {site: functools.partial(collector, site=site) for site in SITES}
    return image_features(params, images, spec, plan=plan, collect=collect).collected


def gather(
    encoder: Encoder, batches: Batches, statistic: Statistic, combine: Callable[[Array, Array], Array]
) -> dict[str, Any]:
    """A statistic of every site with axis L in front, combined over batches. `statistic` must be one object a kind."""
    total: dict[str, Any] | None = None
    for images in batches:
        images = jnp.asarray(images, encoder.dtype)
        batch = _batch(encoder.params.image, images, encoder.plan, spec=encoder.spec.image, statistic=statistic)
        total = batch if total is None else jax.tree.map(combine, total, batch)
    assert total is not None
    return total


def _extremes(rows: Float[Array, "T C"], present: Bool[Array, "T"]) -> Float[Array, "2 C"]:
    hidden = ~present[:, None]
    return jnp.stack(
        [jnp.max(jnp.where(hidden, -jnp.inf, -rows), axis=0), jnp.max(jnp.where(hidden, -jnp.inf, rows), axis=0)]
    )


def channel_extremes(encoder: Encoder, batches: Batches) -> dict[str, Float[Array, "L 2 C"]]:
    """Least and largest value of every channel."""
    found = gather(encoder, batches, _extremes, jnp.maximum)
    return {site: each * jnp.array([[-1.0], [1.0]]) for site, each in found.items()}


def channel_absmax(encoder: Encoder, batches: Batches) -> dict[str, Float[Array, "L C"]]:
    """Largest magnitude of every channel."""
    return {site: jnp.max(jnp.abs(each), axis=1) for site, each in channel_extremes(encoder, batches).items()}


def _absolute_sum(rows: Float[Array, "T C"], present: Bool[Array, "T"]) -> tuple[Array, Array]:
    return jnp.sum(jnp.abs(rows), axis=0), jnp.sum(present.astype(jnp.float32))


def channel_mean_magnitude(encoder: Encoder, batches: Batches) -> dict[str, Float[Array, "L C"]]:
    """Mean magnitude of every channel."""
    found = gather(encoder, batches, _absolute_sum, jnp.add)
    return {site: total / count[:, None] for site, (total, count) in found.items()}


def _gram(rows: Float[Array, "T C"], present: Bool[Array, "T"]) -> tuple[Array, Array]:
    return rows.T @ rows, jnp.sum(present.astype(jnp.float32))


def second_moments(encoder: Encoder, batches: Batches) -> dict[str, Float[Array, "L C C"]]:
    """Mean over tokens of the outer product of a site's input with itself: half the Hessian of a layer's squared error."""
    found = gather(encoder, batches, _gram, jnp.add)
    return {site: total / count[:, None, None] for site, (total, count) in found.items()}


def sampled_rows(total: int) -> Int[np.ndarray, "S"]:
    """Which tokens of a batch are sampled: drawn at random, as an even stride that divides the tokens of an image would take the
    same few positions of all images, its left border say."""
    return np.sort(np.random.default_rng(SEED).choice(total, min(total, SAMPLED_TOKENS), replace=False))


def _some(rows: Float[Array, "T C"], present: Bool[Array, "T"]) -> Float[Array, "S C"]:
    return rows[sampled_rows(len(rows))]


def sampled_tokens(encoder: Encoder, batches: Batches) -> dict[str, Float[Array, "L S C"]]:
    """Up to `SAMPLED_TOKENS` rows of every site from the first batch."""
    return gather(encoder, batches[:1], _some, jnp.add)
