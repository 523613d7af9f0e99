"""RepQ-ViT (Li et al. 2023, arXiv 2212.08254, section 3.2): a range for every channel of a norm's output, paid for once.

Every channel of the inputs of `qkv` and `fc1` is brought to one common range by a factor and a shift that go into the norm, and
their inverse into kernels and biases; then one scale serves all channels as well as one each would. What differs: a channel's
range is that of its extremes, not the best of three percentiles; with symmetric activations the common range is centred on
zero. The log-sqrt2 quantiser of softmax (section 3.3) is an option of every scheme with an integer p v, `softmax="log-sqrt2"`:
rows are in units of their largest weight, not of a percentile of all, and int8 holds 16 of its levels.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.kernels import quantized_cells
from regcache_jax.quantization.methods.folding import NORMS, at_least_a_step, divide_inputs, shift_inputs
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed


def reparameterization(
    lower: Float[Array, "*L C"], upper: Float[Array, "*L C"], symmetric: bool, bits: int = 8
) -> tuple[Float[Array, "*L C"], Float[Array, "*L C"]]:
    """Factor r and shift b of every channel: x / r - b has the same range in all channels (equations 11 to 14).

    The common width is the mean of all widths; the common centre is zero, or (if not symmetric) the mean of the centres in
    units of their widths."""
    width = at_least_a_step(upper - lower, bits)
    common = jnp.mean(width, axis=-1, keepdims=True)
    centre = (upper + lower) / 2
    factor = width / common
    target = 0.0 if symmetric else jnp.mean(centre / width, axis=-1, keepdims=True) * common
    return factor, centre / factor - target


def repq_vit(encoder: Encoder, seen: Observed, scheme: Scheme) -> Encoder:
    """Re-parameterises both norms of every block."""
    for site in NORMS:
        bits, extremes = scheme.at(site).activation_bits, seen.extremes[site]
        factor, shift = reparameterization(extremes[:, 0], extremes[:, 1], scheme.symmetric, bits)
        chosen = quantized_cells(scheme, site, len(factor))[:, None]
        encoder = divide_inputs(encoder, site, jnp.where(chosen, factor, 1.0))
        encoder = shift_inputs(encoder, site, jnp.where(chosen, shift, 0.0))
    return encoder


METHOD = Method("repq_vit", "a range for every channel after a norm, folded into it", ("extremes",), prepare=repq_vit)
