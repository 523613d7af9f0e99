"""Clipped weights: the scale of every output channel with the least squared rounding error, not that of its largest weight.

The search of GPTQ's and AWQ's code (Frantar et al. 2023; Lin et al. 2024): scales from 100 % down to 20 % of absmax. What
differs: the error is squared, as RepQ-ViT's is, not to the power of 2.4. Ranges of activations are clipped by the scheme's
estimator (percentile, mse, entropy).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Dense, QuantizedTensor
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.ops.integers import fake_quantize, quantize_weight, scale_of
from regcache_jax.quantization.kernels import Rounder
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed

SHARES = tuple(1 - number / 100 for number in range(80))


@functools.partial(jax.jit, static_argnames=("bits", "axes"))
def least_error_scale(kernel: Float[Array, "L ..."], bits: int, axes: tuple[int, ...]) -> Float[Array, "L ..."]:
    """The scale, shared along `axes`, that rounds a stacked kernel with the least squared error."""
    kernel = kernel.astype(jnp.float32)
    peak = jnp.max(jnp.abs(kernel), axis=axes, keepdims=True)
    widest = scale_of(peak, bits)

    def error(share: Float[Array, ""]) -> Float[Array, "..."]:
        rounded = fake_quantize(kernel, bits, axes, jnp.broadcast_to(widest * share, peak.shape))
        return jnp.sum(jnp.square(rounded - kernel), axis=axes, keepdims=True)

    shares = jnp.array(SHARES, jnp.float32)
    return widest * shares[jnp.argmin(jax.lax.map(error, shares), axis=0)]


def clipped_rounder(encoder: Encoder, seen: Observed, scheme: Scheme) -> Rounder:
    """Rounds to the nearest with the scales of least error, a channel or a kernel."""

    def rounder(site: str, name: str, layer: Dense, bits: int) -> QuantizedTensor:
        axes = layer.input_axes if scheme.weights == "channel" else tuple(range(1, layer.floats.ndim))
        scale = least_error_scale(layer.floats, bits, axes)
        return quantize_weight(layer.floats, bits, layer.input_axes, scale=scale)

    return rounder


METHOD = Method("clipping", "weight scales of least squared error", round=clipped_rounder)
