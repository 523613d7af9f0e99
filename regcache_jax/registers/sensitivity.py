"""Sensitivity (paper, step 1): quantise one site of one block at a time and measure the error of the features.

Every measurement starts from the float states at its own block, and one program serves all of them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Grid, ImageTower
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.data.cut import cut
from regcache_jax.encoders.blocks import run_blocks
from regcache_jax.encoders.encoder import Encoder, normalize
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.vision import image_features, pool
from regcache_jax.quantization.calibrate import calibrate, scales_from_ranges
from regcache_jax.quantization.kernels import quantize_kernels
from regcache_jax.registers.reference import check_images
from regcache_jax.registers.search.programs import feature_errors


@functools.partial(jax.jit, static_argnames="spec")
def _reference(
    tower: ImageTower, images: Float[Array, "B Y X 3"], *, spec: EncoderSpec
) -> tuple[Float[Array, "B E"], Float[Array, "L B N D"]]:
    """Float features, and the states that enter the blocks."""
    output = image_features(tower, images, spec.image, collect={"hidden": lambda trace: trace.hidden})
    return normalize(output.features) if spec.normalize else output.features, output.collected["hidden"]


@functools.partial(jax.jit, static_argnames=("spec", "scheme"))
def _one_site(
    tower: ImageTower,
    rounded: Block,
    grids: dict[str, Grid],
    hidden: Float[Array, "B N D"],
    first: Int[Array, ""],
    *,
    spec: EncoderSpec,
    scheme: Scheme,
) -> Float[Array, "B E"]:
    """Features with the sites quantised whose grid is enabled, from the float states at block `first`."""
    blocks = tower.blocks
    mixed = {}
    for site in SITES:
        integer = rounded.layers(site)
        for name, layer in blocks.layers(site).items():
            on = jnp.reshape(jnp.asarray(grids[site].enabled), (-1, *(1,) * (layer.floats.ndim - 1)))
            mixed[name] = layer.replace(kernel=jnp.where(on, integer[name].integers.dequantize(), layer.floats))
    blocks = blocks.with_layers(mixed).with_grids(grids)
    run = Run(spec.image.blocks, scheme, spec.image.protected)
    output = run_blocks(blocks, hidden, run, start=first)
    features = pool(tower, output.hidden, spec.image)[0]
    return normalize(features) if spec.normalize else features


def sensitivity(
    encoder: Encoder,
    images: Float[np.ndarray, "n Y X 3"],
    scheme: Scheme,
    *,
    labels: Int[np.ndarray, "n"] | None = None,
    class_vectors: Float[np.ndarray, "C E"] | None = None,
    batch_size: int = 32,
) -> Float[np.ndarray, "L 4"]:
    """Mean error (`feature_errors`) when only one site (columns: `SITES`) of one block (rows) is quantised: its weights and
    its static activation scale, calibrated on the same images. With labels and class vectors: the drop in top-1."""
    images = np.asarray(images)
    check_images(images, encoder.spec)
    encoder = encoder.with_plan(None)
    scheme = Scheme(scheme.weight_bits, scheme.activation_bits, "static", scheme.weights)
    spec, tower = encoder.spec, encoder.params.image
    ranges = calibrate(encoder, (batch for batch, _ in cut(images, batch_size)), scheme)
    scales = scales_from_ranges(ranges, scheme.activation_bits)
    rounded = quantize_kernels(tower.blocks, scheme)
    num_blocks = spec.image.blocks.num_blocks
    errors, baseline = np.zeros((num_blocks, len(SITES))), 0.0
    for number, (batch, mask) in enumerate(cut(images, batch_size)):
        reference, hidden = _reference(tower, jnp.asarray(batch, encoder.dtype), spec=spec)
        known = np.asarray(reference)[mask]
        own = None if labels is None else labels[number * len(mask) : number * len(mask) + int(mask.sum())]
        if own is not None:
            baseline += feature_errors(known, known, own, class_vectors).sum()
        for block in range(num_blocks):
            for column, chosen in enumerate(SITES):
                only = {site: np.arange(num_blocks) == (block if site == chosen else -1) for site in SITES}
                grids = {site: Grid(scales[site], enabled=jnp.asarray(only[site])) for site in SITES}
                features = _one_site(tower, rounded, grids, hidden[block], jnp.int32(block), spec=spec, scheme=scheme)
                errors[block, column] += feature_errors(np.asarray(features)[mask], known, own, class_vectors).sum()
    return (errors - baseline) / len(images)


def most_sensitive(errors: Float[np.ndarray, "L 4"], count: int) -> list[tuple[str, int]]:
    """The (site, block) cells with the largest errors of `sensitivity`, the largest first."""
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    return [(SITES[cell % len(SITES)], int(cell) // len(SITES)) for cell in order]
