"""NoisyQuant (Liu et al. 2023, arXiv 2211.16056, section 3): fixed noise added before rounding, its product taken from the bias.

Uniform noise, one number a channel, drawn once, flattens peaked distributions over the steps. What differs: the noise's
amplitude is searched for every block and site (none, or a share of the step) by the squared error of the site's products, and
all four sites may get some; the method wants one static scale a site, and adds to a zero point where there is one.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES
from regcache_jax.core.sites import Block
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.rounding import calibrated_scale
from regcache_jax.ops.integers import fake_quantize
from regcache_jax.quantization.kernels import add_offset, quantized_cells, site_matrix
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed

SEED = 0
AMPLITUDES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Candidates, in steps of the quantiser."""


@functools.partial(jax.jit, static_argnames=("bits",))
def noise_errors(
    inputs: Float[Array, "L S C"],
    kernel: Float[Array, "L C M"],
    scale: Float[Array, "L"],
    offset: Float[Array, "L #C"],
    noise: Float[Array, "L C"],
    bits: Any,
) -> Float[Array, "L"]:
    """Squared error of a site's products, a block, with noise before rounding and without it after."""

    def one(row: Any) -> Float[Array, ""]:
        inputs, kernel, scale, offset, noise = row
        added = offset + noise
        rounded = fake_quantize(inputs + added, bits, (0, 1), scale.reshape(1, 1)) - added
        return jnp.mean(jnp.square((rounded - inputs) @ kernel))

    return jax.lax.map(one, (inputs, kernel, scale, offset, noise))


def noisyquant(encoder: Encoder, quantized: Encoder, seen: Observed) -> Encoder:
    """Adds the best noise to every quantised site. Raises UserError for scales that are not static and per tensor."""
    scheme = quantized.scheme
    assert scheme is not None
    if scheme.activations != "static":
        raise UserError(f"method noisyquant goes with static activation scales, not with {scheme.activations} ones")
    blocks = quantized.params.image.blocks
    float_blocks = encoder.params.image.blocks
    num_blocks = encoder.spec.image.blocks.num_blocks
    for number, site in enumerate(SITES):
        if not quantized_cells(scheme, site, num_blocks).any():
            continue
        kernel, grid, inputs = site_matrix(float_blocks, site), blocks.grids.of(site), seen.tokens[site]
        scale = calibrated_scale(grid, site, scheme)
        offset = (jnp.zeros(num_blocks) if grid.offset is None else grid.offset).reshape(num_blocks, -1)
        rng = jax.random.fold_in(jax.random.key(SEED), number)
        unit = jax.random.uniform(rng, inputs.shape[::2], jnp.float32, -1.0, 1.0) * scale[:, None]
        bits = scheme.at(site).activation_bits
        errors = jnp.stack([noise_errors(inputs, kernel, scale, offset, unit * a, bits) for a in AMPLITUDES])
        amplitude = jnp.array(AMPLITUDES, jnp.float32)[jnp.argmin(errors, axis=0)]
        noise = (unit * amplitude[:, None]).reshape(_input_shape(float_blocks, site))
        blocks = add_offset(blocks, site, noise, scheme)
    return with_blocks(quantized, blocks)


def _input_shape(blocks: Block, site: str) -> tuple[int, ...]:
    """Shape of an array with one number for every block and input channel of a site."""
    layer = next(iter(blocks.layers(site).values()))
    return layer.floats.shape[: 1 + layer.num_inputs]


METHOD = Method("noisyquant", "fixed noise before rounding, taken back in the bias", ("tokens",), finish=noisyquant)
