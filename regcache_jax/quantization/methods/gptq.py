"""GPTQ (Frantar et al. 2023, arXiv 2210.17323, section 3): weights rounded channel by channel, the rest making up for it.

The error of each rounded input channel is spread over those still to come, by the inverse Hessian of the layer's squared error.
What differs: inputs are those of the float encoder, not of one whose earlier layers are quantised; channels come in the order of
their Hessian's diagonal (`act_order` of the authors' code); scales are ours, from each output channel's largest weight.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Dense, QuantizedTensor
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.ops.integers import largest_integer, quantize_weight
from regcache_jax.quantization.kernels import Rounder
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed

DAMPING = 0.01
"""What is added to the diagonal, as a share of its mean."""


@functools.partial(jax.jit, static_argnames=("bits", "ordered"))
def compensate(
    kernel: Float[Array, "C M"],
    scale: Float[Array, "1 #M"],
    moments: Float[Array, "C C"],
    bits: int,
    ordered: bool = True,
) -> Int8[Array, "C M"]:
    """Integers of one kernel. `moments`: mean of x x^T over the layer's inputs; input channels that are always zero get 0."""
    size = len(kernel)
    diagonal = jnp.diagonal(moments)
    order = jnp.argsort(-diagonal, stable=True) if ordered else jnp.arange(size)
    dead = diagonal <= 0
    damped = moments + jnp.diag(jnp.where(dead, 1.0, 0.0) + DAMPING * jnp.mean(jnp.where(dead, 1.0, diagonal)))
    damped = damped[order][:, order]
    inverse = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(damped), True), jnp.eye(size))
    upper = jnp.linalg.cholesky((inverse + inverse.T) / 2).T
    upper = jnp.where(jnp.isfinite(upper).all(), upper, jnp.eye(size))  # moments that say nothing: to the nearest
    largest = largest_integer(bits)

    start = jnp.where(dead[:, None], 0.0, kernel)[order]

    def round_channel(channel: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        errors, integers = state
        left = start[channel] - upper[:, channel] @ errors  # those of later channels are zero as yet
        row = jnp.clip(jnp.round(left / scale[0]), -largest, largest)
        error = (left - row * scale[0]) / upper[channel, channel]
        return errors.at[channel].set(error), integers.at[channel].set(row.astype(jnp.int8))

    nothing = jnp.zeros(kernel.shape, jnp.float32), jnp.zeros(kernel.shape, jnp.int8)
    integers = jax.lax.fori_loop(0, size, round_channel, nothing)[1]
    return jnp.zeros_like(integers).at[order].set(integers)


def round_with_moments(
    layer: Dense, scale: Float[Array, "L ..."], moments: Float[Array, "L C C"], bits: int
) -> QuantizedTensor:
    """The integers of a stacked layer, block after block, with given scales."""
    kernel, after = layer.floats, 1 + layer.num_inputs
    shape = (len(kernel), 1, *kernel.shape[after:])
    flat = jnp.broadcast_to(scale.reshape(len(kernel), 1, *scale.shape[after:]), shape)
    flat = flat.reshape(len(kernel), 1, -1)
    values = jnp.stack([compensate(*rows, bits) for rows in zip(layer.matrix(), flat, moments, strict=True)])
    return QuantizedTensor(values.reshape(kernel.shape), scale)


def gptq_rounder(encoder: Encoder, seen: Observed, scheme: Scheme) -> Rounder:
    """Rounds with the second moments of every site's input."""

    def rounder(site: str, name: str, layer: Dense, bits: int) -> QuantizedTensor:
        nearest = quantize_weight(layer.floats, bits, layer.input_axes, scheme.weights == "channel")
        return round_with_moments(layer, nearest.scale, seen.moments[site], bits)

    return rounder


METHOD = Method("gptq", "each rounded weight's error made up for by the next ones", ("moments",), round=gptq_rounder)
