"""Sinks: which patches they are, what they draw, and what they carry: the values of a null sink are near zero."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.vision import image_features
from regcache_jax.ops.delete import linf_norm
from regcache_jax.registers.places import median_patch, tokens_of
from regcache_jax.registers.reference import Images, as_batches

SINK_RATIO = 10.0
"""A token is an outlier where its norm is this many times the median patch's (paper: sinks have 10 to 100 times)."""


def is_sink(trace: BlockTrace, spec: ImageSpec) -> Bool[Array, "B N"]:
    """Patches whose norm at the block's input is SINK_RATIO times the image's median patch's."""
    norms = linf_norm(trace.hidden)
    patch = jnp.arange(norms.shape[1]) >= spec.num_protected
    return patch & (norms >= SINK_RATIO * median_patch(norms, trace, spec))


class Sinks(NamedTuple):
    """Which patches are sinks at a block's input, the mean attention that they draw from the image's tokens, and what they carry per head:
    the length of their values over ordinary patches', and of what other tokens get from them over all that these get."""

    sink: Bool[Array, "B N"]
    drawn: Float[Array, "B"]
    value: Float[Array, "B H"]
    moved: Float[Array, "B H"]


def sinks_of(trace: BlockTrace, spec: ImageSpec) -> Sinks:
    """Those of one block."""
    sink = is_sink(trace, spec)
    weights, value = (each.astype(jnp.float32) for each in (trace.weights, trace.value))
    seen = weights * sink[:, None, None, :].astype(jnp.float32)
    by_token = jnp.sum(seen, axis=-1)
    given = jnp.einsum("bhts,bshk->bthk", seen[..., : value.shape[1]], value)
    mixed = trace.out.astype(jnp.float32)
    if spec.blocks.inner_norms:  # what was mixed, before its norm
        mixed = jnp.einsum("bhts,bshk->bthk", weights[..., : value.shape[1]], value)
    length, got, whole = (jnp.linalg.norm(each, axis=-1) for each in (value, given, mixed))
    there = tokens_of(trace, spec)
    others = ~sink if there is None else ~sink & there
    ordinary = others & (jnp.arange(sink.shape[1]) >= spec.num_protected)

    def mean(values: Float[Array, "B N H"], tokens: Bool[Array, "B N"]) -> Float[Array, "B H"]:
        mask = tokens[..., None].astype(jnp.float32)
        return jnp.sum(values * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1.0)

    def over(part: Float[Array, "B H"], all_of_it: Float[Array, "B H"]) -> Float[Array, "B H"]:
        return part / jnp.maximum(all_of_it, 1e-12)

    if there is None:
        drawn = jnp.mean(by_token, axis=(1, 2))
    else:
        drawn = jnp.mean(mean(jnp.swapaxes(by_token, 1, 2), there), axis=1)
    return Sinks(
        sink,
        drawn,
        over(mean(length, sink), mean(length, ordinary)),
        over(mean(got, others), mean(whole, others)),
    )


@functools.partial(jax.jit, static_argnames=("spec",))
def _sink_masks(
    tower: ImageTower, images: Float[Array, "B Y X 3"], plan: RegisterPlan | None, *, spec: ImageSpec
) -> Bool[Array, "L B N"]:
    collect = {"sink": functools.partial(is_sink, spec=spec)}
    return image_features(tower, images, spec, plan=plan, collect=collect).collected["sink"]


def find_sinks(encoder: Encoder, images: Images, *, batch_size: int = 32) -> Bool[np.ndarray, "L n N"]:
    """Which tokens are sinks at every block's input, image by image (what a picture of them is drawn from)."""
    masks = [
        np.asarray(
            _sink_masks(encoder.params.image, jnp.asarray(batch, encoder.dtype), encoder.plan, spec=encoder.spec.image)
        )[:, np.asarray(mask, bool)]
        for batch, mask in as_batches(images, encoder.spec, batch_size)
    ]
    return np.concatenate(masks, axis=1)
