"""The stacked kernels of the block stack, by the site whose input they read: as integers, with folded offsets."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Dense, Grid, QuantizedTensor
from regcache_jax.ops.integers import quantize_weight

Rounder = Callable[[str, str, Dense, int], QuantizedTensor]
"""From a site, the name of a layer there and that stacked float layer to integers of some bits."""


def site_matrix(blocks: Block, site: str) -> Float[Array, "L C M"]:
    """All kernels that read a site, side by side."""
    return jnp.concatenate([layer.matrix() for layer in blocks.layers(site).values()], axis=-1)


def quantized_cells(scheme: Scheme, site: str, num_blocks: int) -> Bool[np.ndarray, "L"]:
    """In which blocks a site is quantised."""
    return np.array([scheme.at(site, block).quantized for block in range(num_blocks)])


def round_to_nearest(scheme: Scheme) -> Rounder:
    """Scales from the largest magnitude, a channel or a kernel."""

    def rounder(site: str, name: str, layer: Dense, bits: int) -> QuantizedTensor:
        return quantize_weight(layer.floats, bits, layer.input_axes, scheme.weights == "channel")

    return rounder


def quantize_kernels(blocks: Block, scheme: Scheme, rounder: Rounder | None = None) -> Block:
    """Replaces the kernels of every site that the scheme quantises by integers, blocks with different bits each with theirs.

    Where rules leave some blocks of a site in float, their kernels are kept packed as `float_kernel [n, ...]`, and their
    integers are zero."""
    rounder = rounder or round_to_nearest(scheme)
    rounded: dict[str, Dense] = {}
    for site in SITES:
        cells = [scheme.at(site, block) for block in range(blocks.num_blocks)]
        chosen = quantized_cells(scheme, site, blocks.num_blocks)
        if not chosen.any():
            continue
        for name, layer in blocks.layers(site).items():
            kernel = _by_bits(rounder, site, name, layer, [cell.weight_bits for cell in cells], chosen)
            left = None if chosen.all() else layer.floats[np.nonzero(~chosen)[0]]
            rounded[name] = layer.replace(kernel=kernel, float_kernel=left)
    return blocks.with_layers(rounded)


def simulated_kernels(blocks: Block, scheme: Scheme) -> Block:
    """The kernels that the integers stand for, in float."""
    return jax.tree.map(
        lambda leaf: leaf.dequantize() if isinstance(leaf, QuantizedTensor) else leaf,
        quantize_kernels(blocks, scheme),
        is_leaf=lambda leaf: isinstance(leaf, QuantizedTensor),
    )


def _by_bits(
    rounder: Rounder,
    site: str,
    name: str,
    layer: Dense,
    bits: list[int],
    chosen: Bool[np.ndarray, "L"],
) -> QuantizedTensor:
    """Rounds the whole stack once for every number of bits that occurs, and takes from each the blocks that want it."""
    result: QuantizedTensor | None = None
    for wanted in sorted({each for each, use in zip(bits, chosen, strict=True) if use}):
        rounded = rounder(site, name, layer, wanted)
        mask = (np.array(bits) == wanted) & chosen
        if mask.all():
            return rounded
        here = jnp.asarray(mask).reshape(-1, *(1,) * (rounded.values.ndim - 1))
        other = result or QuantizedTensor(jnp.zeros_like(rounded.values), jnp.ones_like(rounded.scale))
        result = QuantizedTensor(
            jnp.where(here, rounded.values, other.values), jnp.where(here, rounded.scale, other.scale)
        )
    assert result is not None
    return result


def add_offset(blocks: Block, site: str, offset: Float[Array, "L *C"], scheme: Scheme) -> Block:
    """Adds `offset` (a number a block, or one a channel) to a site's input before it is rounded, and takes its product with
    the integer kernels from their biases, so that it changes nothing but the rounding. Float blocks get none."""
    chosen = quantized_cells(scheme, site, len(offset))
    offset = jnp.where(chosen.reshape(-1, *(1,) * (offset.ndim - 1)), offset.astype(jnp.float32), 0.0)
    grid: Grid = blocks.grids.of(site)
    before = jnp.zeros(len(offset), jnp.float32) if grid.offset is None else grid.offset
    added = offset + before.reshape(before.shape + (1,) * (offset.ndim - before.ndim))
    shifted = {}
    for name, layer in blocks.layers(site).items():
        kernel = layer.integers.dequantize()
        expanded = offset.reshape(offset.shape + (1,) * (kernel.ndim - offset.ndim))
        product = jnp.sum(kernel * expanded, axis=layer.input_axes)
        shifted[name] = layer.replace(bias=(0.0 if layer.bias is None else layer.bias.astype(jnp.float32)) - product)
    return blocks.with_layers(shifted).with_grids({site: grid.replace(offset=added)})
