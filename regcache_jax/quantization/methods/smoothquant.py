"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, section 4): outlying channels made smaller, their weights larger.

Each channel of a site's input is divided by max|x|**alpha / max|w|**(1 - alpha) (equation 4). What differs: alpha is not one
number for the network but searched for every block and site, by the squared error of the site's products under the scheme,
with "no change" among the candidates; all four sites are treated, not only those after a norm (see `folding`), but by `smoothquant_norms`;
and channels next to zero are not enlarged without bound (`folding.at_least_a_step`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.ops.integers import fake_quantize, scale_of
from regcache_jax.quantization.kernels import quantized_cells, site_matrix
from regcache_jax.quantization.methods.folding import NORMS, at_least_a_step, divide_inputs, divisible_sites
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed

ALPHAS = tuple(number / 20 for number in range(21))
SMALLEST = 1e-5


def smoothing_factors(
    absmax: Float[Array, "*L C"], kernel: Float[Array, "*L C M"], alpha: float | Float[Array, "*#L 1"]
) -> Float[Array, "*L C"]:
    """max|x|**alpha / max|w|**(1 - alpha), a channel; never below 1e-5."""
    weight = jnp.maximum(jnp.max(jnp.abs(kernel), axis=-1), SMALLEST)
    return jnp.maximum(jnp.maximum(absmax, SMALLEST) ** alpha / weight ** (1.0 - alpha), SMALLEST)


@functools.partial(jax.jit, static_argnames=("weight_bits", "activation_bits", "activations", "per_channel"))
def product_errors(
    inputs: Float[Array, "L S C"],
    absmax: Float[Array, "L C"],
    kernel: Float[Array, "L C M"],
    candidates: Float[Array, "A L C"],
    *,
    weight_bits: int,
    activation_bits: int,
    activations: str,
    per_channel: bool,
) -> Float[Array, "L A"]:
    """Squared error of a site's products, for every block and candidate, when its channels are divided by the candidate's
    factors and then quantised."""

    def one(block: Any) -> Float[Array, "A"]:
        inputs, absmax, kernel, candidates = block
        exact = inputs @ kernel

        def error(factors: Float[Array, "C"]) -> Float[Array, ""]:
            scaled = inputs / factors
            if activations == "token":
                scaled = fake_quantize(scaled, activation_bits, (1,))
            elif activations != "float":
                peak = jnp.max(absmax / factors)
                scale = scale_of(peak, activation_bits)
                scaled = fake_quantize(scaled, activation_bits, (0, 1), scale.reshape(1, 1))
            weights = fake_quantize(kernel * factors[:, None], weight_bits, (0,) if per_channel else (0, 1))
            return jnp.mean(jnp.square(scaled @ weights - exact))

        return jax.lax.map(error, candidates)

    return jax.lax.map(one, (inputs, absmax, kernel, jnp.swapaxes(candidates, 0, 1)))


def best_factors(
    inputs: Float[Array, "L S C"],
    absmax: Float[Array, "L C"],
    kernel: Float[Array, "L C M"],
    candidates: list[Float[Array, "L C"]],
    scheme: Scheme,
    activations: str,
    bits: tuple[int, int],
) -> Float[Array, "L C"]:
    """For every block the candidate with the least error (the first of equals)."""
    stacked = jnp.stack(candidates)
    errors = product_errors(
        inputs, absmax, kernel, stacked,
        weight_bits=bits[0], activation_bits=bits[1], activations=activations, per_channel=scheme.weights == "channel",
    )  # fmt: skip
    return jnp.take_along_axis(stacked, jnp.argmin(errors, axis=1)[None, :, None], axis=0)[0]


def smoothquant(encoder: Encoder, seen: Observed, scheme: Scheme, sites: tuple[str, ...] | None = None) -> Encoder:
    """Divides the inputs of all quantised sites (or of some) by smoothing factors, alpha chosen for every block and site."""
    blocks = encoder.params.image.blocks
    for site in sites or divisible_sites(scheme):
        chosen = quantized_cells(scheme, site, encoder.spec.image.blocks.num_blocks)
        kernel, bits = site_matrix(blocks, site), scheme.at(site)[:2]
        absmax = at_least_a_step(jnp.max(jnp.abs(seen.extremes[site]), axis=1), bits[1])
        candidates = [jnp.ones_like(absmax), *(smoothing_factors(absmax, kernel, alpha) for alpha in ALPHAS)]
        factors = best_factors(seen.tokens[site], absmax, kernel, candidates, scheme, scheme.activations, bits)
        encoder = divide_inputs(encoder, site, jnp.where(chosen[:, None], factors, 1.0))
    return encoder


METHOD = Method(
    "smoothquant",
    "outlying channels moved into the weights, alpha searched",
    ("extremes", "tokens"),
    prepare=smoothquant,
)
AT_NORMS = dataclasses.replace(
    METHOD,
    name="smoothquant_norms",
    summary="the same behind norms alone, as published",
    prepare=functools.partial(smoothquant, sites=tuple(NORMS)),
)
