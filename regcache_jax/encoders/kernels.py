"""The stacked kernels of the block stack, by the site whose input they read: as matrices, as integers, with folded offsets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from regcache_jax.core.scheme import SITE_LAYERS, SITES, Scheme
from regcache_jax.ops.aqt import QuantizedTensor, quantize_weight

Blocks = dict[str, Any]

INPUT_AXES = {"query": (1,), "key": (1,), "value": (1,), "out": (1, 2), "fc1": (1,), "gate": (1,), "fc2": (1,)}
"""Contracted axes of each stacked kernel (axis 0 is the block)."""

Rounder = Callable[[str, str, Float[Array, "L ..."], int], QuantizedTensor]
"""From a site, the name of a layer there and its stacked float kernel to integers of some bits."""


def copy_blocks(blocks: Blocks) -> Blocks:
    """The same arrays in new dicts, which may be changed."""
    return {name: copy_blocks(child) if isinstance(child, dict) else child for name, child in blocks.items()}


def layers_of(blocks: Blocks, site: str) -> list[tuple[str, str]]:
    """(group, name) of the layers that read a site in this encoder."""
    return [(group, name) for group, name in SITE_LAYERS[site] if name in blocks[group]]


def matrix(name: str, kernel: Float[Array, "L ..."]) -> Float[Array, "L C M"]:
    """A stacked kernel as matrices from C input to M output channels."""
    inputs = math.prod(kernel.shape[axis] for axis in INPUT_AXES[name])
    return kernel.reshape(kernel.shape[0], inputs, -1)


def site_matrix(blocks: Blocks, site: str) -> Float[Array, "L C M"]:
    """All kernels that read a site, side by side."""
    kernels = [matrix(name, blocks[group][name]["kernel"]) for group, name in layers_of(blocks, site)]
    return jnp.concatenate(kernels, axis=-1).astype(jnp.float32)


def quantized_cells(scheme: Scheme, site: str, num_blocks: int) -> Bool[np.ndarray, "L"]:
    """In which blocks a site is quantised."""
    return np.array([scheme.at(site, block).quantized for block in range(num_blocks)])


def round_to_nearest(scheme: Scheme) -> Rounder:
    """Scales from the largest magnitude, a channel or a kernel."""

    def rounder(site: str, name: str, kernel: Float[Array, "L ..."], bits: int) -> QuantizedTensor:
        return quantize_weight(kernel, bits, INPUT_AXES[name], scheme.weights == "channel")

    return rounder


def quantize_kernels(blocks: Blocks, scheme: Scheme, rounder: Rounder | None = None) -> Blocks:
    """Replaces the kernels of every site that the scheme quantises by integers, blocks with different bits each with theirs.

    Where rules leave some blocks of a site in float, their kernels are kept packed as `float_kernel [n, ...]`, and their
    integers are zero."""
    rounder = rounder or round_to_nearest(scheme)
    blocks = copy_blocks(blocks)
    num_blocks = len(blocks["norm1"]["scale"])
    for site in SITES:
        cells = [scheme.at(site, block) for block in range(num_blocks)]
        chosen = quantized_cells(scheme, site, num_blocks)
        if not chosen.any():
            continue
        for group, name in layers_of(blocks, site):
            layer = blocks[group][name]
            kernel = _by_bits(rounder, site, name, layer["kernel"], [cell.weight_bits for cell in cells], chosen)
            blocks[group][name] = {**layer, "kernel": kernel}
            if not chosen.all():
                blocks[group][name]["float_kernel"] = layer["kernel"][np.nonzero(~chosen)[0]]
    return blocks


def _by_bits(
    rounder: Rounder,
    site: str,
    name: str,
    kernel: Float[Array, "L ..."],
    bits: list[int],
    chosen: Bool[np.ndarray, "L"],
) -> QuantizedTensor:
    """Rounds the whole stack once for every number of bits that occurs, and takes from each the blocks that want it."""
    result: QuantizedTensor | None = None
    for wanted in sorted({each for each, use in zip(bits, chosen, strict=True) if use}):
        rounded = rounder(site, name, kernel, wanted)
        mask = (np.array(bits) == wanted) & chosen
        if mask.all():
            return rounded
        here = jnp.asarray(mask).reshape(-1, *(1,) * (kernel.ndim - 1))
        other = result or QuantizedTensor(jnp.zeros_like(rounded.values), jnp.ones_like(rounded.scale))
        result = QuantizedTensor(
            jnp.where(here, rounded.values, other.values), jnp.where(here, rounded.scale, other.scale)
        )
    assert result is not None
    return result


def add_offset(blocks: Blocks, site: str, offset: Float[Array, "L *C"], scheme: Scheme) -> Blocks:
    """Adds `offset` (a number a block, or one a channel) to a site's input before it is rounded, and takes its product with
    the integer kernels from their biases, so that it changes nothing but the rounding. Float blocks get none."""
    blocks = copy_blocks(blocks)
    chosen = quantized_cells(scheme, site, len(offset))
    offset = jnp.where(chosen.reshape(-1, *(1,) * (offset.ndim - 1)), offset.astype(jnp.float32), 0.0)
    offsets = blocks.setdefault("input_offset", {})
    before = offsets.get(site, jnp.zeros(len(offset), jnp.float32))
    offsets[site] = offset + before.reshape(before.shape + (1,) * (offset.ndim - before.ndim))
    for group, name in layers_of(blocks, site):
        layer = blocks[group][name]
        kernel = layer["kernel"].dequantize()
        axes = INPUT_AXES[name]
        expanded = offset.reshape(offset.shape + (1,) * (kernel.ndim - offset.ndim))
        product = jnp.sum(kernel * expanded, axis=axes)
        bias = layer["bias"].astype(jnp.float32) if "bias" in layer else 0.0
        layer["bias"] = bias - product
    return blocks
