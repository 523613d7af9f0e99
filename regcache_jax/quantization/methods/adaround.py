"""AdaRound (Nagel et al. 2020, arXiv 2004.10568, section 3): whether a weight is rounded up or down, as a number that can be learned.

A stretched sigmoid of that number says how far up; learned beside it, for FIMA-Q, are factors of the activations' scales."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, QuantizedTensor
from regcache_jax.ops.integers import largest_integer

STRETCH = (-0.1, 1.1)
SCALE_RATE = 0.2
"""How fast scales move beside roundings."""


class Learned(NamedTuple):
    """Of one block: a number a weight, whose stretched sigmoid says how far it is rounded up, and factors of its scales."""

    rounding: dict[str, Float[Array, "1 ..."]]
    log_scale: dict[str, Float[Array, "1 ..."]]


def up(rounding: Float[Array, "..."]) -> Float[Array, "..."]:
    """How far a weight is rounded up: 0 to 1, reached at finite numbers."""
    low, high = STRETCH
    return jnp.clip(jax.nn.sigmoid(rounding) * (high - low) + low, 0.0, 1.0)


def start_of_rounding(steps: Float[Array, "..."]) -> Float[Array, "..."]:
    """The numbers at which `up` is the fraction of weights in units of their scale."""
    low, high = STRETCH
    return -jnp.log((high - low) / (steps - jnp.floor(steps) - low) - 1.0)


def simulated(learned: Learned, float_block: Block, fixed: Block, scheme: Scheme) -> Block:
    """A block with kernels between two integers, in float, and its scales as they are learned."""
    between = {}
    for site in SITES:
        largest = float(largest_integer(scheme.at(site).weight_bits))
        floats = float_block.layers(site)
        for name, layer in fixed.layers(site).items():
            if name in learned.rounding:
                scale = layer.integers.scale
                steps = jnp.floor(floats[name].floats / scale) + up(learned.rounding[name])
                between[name] = layer.replace(kernel=jnp.clip(steps, -largest, largest) * scale)
    grids = {}
    for site, factor in learned.log_scale.items():
        grid = fixed.grids.of(site)
        assert grid.scale is not None
        grids[site] = grid.replace(scale=grid.scale * jnp.exp(SCALE_RATE * factor))
    return fixed.with_layers(between).with_grids(grids)


def settled(blocks: Block, learned: Learned, float_block: Block, scheme: Scheme, number: int) -> Block:
    """The stack with a block's learned integers and scales."""
    layers = {}
    for site in SITES:
        largest = largest_integer(scheme.at(site).weight_bits)
        floats = float_block.layers(site)
        for name, layer in blocks.layers(site).items():
            if name in learned.rounding:
                kernel = layer.integers
                steps = jnp.floor(floats[name].floats.astype(jnp.float32) / kernel.scale[number : number + 1])
                steps = jnp.clip(steps + (learned.rounding[name] >= 0).astype(jnp.float32), -largest, largest)
                values = kernel.values.at[number].set(steps[0].astype(jnp.int8))
                layers[name] = layer.replace(kernel=QuantizedTensor(values, kernel.scale))
    grids = {}
    for site, factor in learned.log_scale.items():
        grid = blocks.grids.of(site)
        assert grid.scale is not None
        grids[site] = grid.replace(scale=grid.scale.at[number].multiply(jnp.exp(SCALE_RATE * factor[0])))
    return blocks.with_layers(layers).with_grids(grids)
