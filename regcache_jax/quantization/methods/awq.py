"""AWQ (Lin et al. 2024, arXiv 2306.00978, section 3.2): channels that matter are scaled up before weights are rounded.

Each kernel's input channel is multiplied by mean|x|**beta, normalised to a geometric mean range of 1 (as the authors' code does),
with beta from a grid of 20 by the squared error of the site's products with rounded weights and float activations. What
differs: the error is that of the site's products, not of the whole block's output; weights are not clipped in addition (see
`clipping`); and channels next to zero are not enlarged without bound (`folding.at_least_a_step`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.kernels import quantized_cells, site_matrix
from regcache_jax.quantization.methods.folding import at_least_a_step, divide_inputs, divisible_sites
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed
from regcache_jax.quantization.methods.smoothquant import best_factors

BETAS = tuple(number / 20 for number in range(20))


def importance_factors(mean_magnitude: Float[Array, "*L C"], beta: float) -> Float[Array, "*L C"]:
    """mean|x|**beta over the square root of (largest x smallest), a channel; the mean magnitude is at least 1e-4."""
    factors = jnp.maximum(jnp.maximum(mean_magnitude, 1e-4) ** beta, 1e-4)
    ends = jnp.max(factors, axis=-1, keepdims=True) * jnp.min(factors, axis=-1, keepdims=True)
    return factors / jnp.sqrt(ends)


def awq(encoder: Encoder, seen: Observed, scheme: Scheme) -> Encoder:
    """Divides the inputs of all quantised sites by importance factors, beta chosen for every block and site."""
    blocks = encoder.params.image.blocks
    for site in divisible_sites(scheme):
        chosen = quantized_cells(scheme, site, encoder.spec.image.blocks.num_blocks)
        magnitude = seen.magnitudes[site]
        kernel, bits = site_matrix(blocks, site), scheme.at(site)[:2]
        candidates = [importance_factors(at_least_a_step(magnitude, bits[1]), beta) for beta in BETAS]
        factors = best_factors(seen.tokens[site], magnitude, kernel, candidates, scheme, "float", bits)
        encoder = divide_inputs(encoder, site, jnp.where(chosen[:, None], factors, 1.0))
    return encoder


METHOD = Method(
    "awq", "channels that matter scaled up before weights are rounded", ("magnitudes", "tokens"), prepare=awq
)
