"""Sensitivity (paper, step 1): quantise one site of one block at a time and measure the error of the features, without labels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from regcache_jax.encoders.blocks import run_blocks
from regcache_jax.encoders.encoder import Encoder, normalize
from regcache_jax.encoders.vision import image_features, pool
from regcache_jax.quantization.calibrate import range_collectors, scales_from_ranges
from regcache_jax.quantization.kernels import quantize_kernels
from regcache_jax.quantization.scheme import SITE_LAYERS, SITES, Scheme


@functools.partial(jax.jit, static_argnames=("spec", "scheme"))
def _reference(params: Any, images: Any, *, spec: Any, scheme: Scheme) -> Any:
    collectors = {**range_collectors(scheme.activations, spec.leading), "hidden": lambda trace: trace.hidden}
    output = image_features(params, images, spec, collect=collectors)
    return normalize(output.features), output.collected.pop("hidden"), output.collected


@functools.partial(jax.jit, static_argnames=("spec", "scheme"))
def _one_site(
    params: Any, rounded: Any, scales: Any, hidden: Any, switch: Any, first: Any, *, spec: Any, scheme: Scheme
) -> Any:
    """Features with the sites quantised whose switch is on, from the float states at block `first`."""
    blocks = {name: dict(group) if isinstance(group, dict) else group for name, group in params["blocks"].items()}
    for site, layers in SITE_LAYERS.items():
        for group, name in layers:
            if name in blocks[group]:
                layer = blocks[group][name]
                on = switch[site].reshape(-1, *(1,) * (layer["kernel"].ndim - 1))
                kernel = jnp.where(on, rounded[group][name]["kernel"].dequantize(), layer["kernel"])
                blocks[group][name] = {**layer, "kernel": kernel}
    blocks |= {"switch": switch, "input_scale": scales}
    output = run_blocks(blocks, hidden, spec.blocks, start=first, scheme=scheme, leading=spec.leading)
    return normalize(pool(params, output.hidden, spec)[0])


def sensitivity(encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], scheme: Scheme) -> Float[np.ndarray, "L 4"]:
    """Mean squared distance of unit features when only one site (columns: `SITES`) of one block (rows) is quantised,
    its weights and its static activation scale, calibrated on the same images. One program serves all of them."""
    scheme = Scheme(scheme.weight_bits, scheme.activation_bits, "static", scheme.weights)
    spec, params = encoder.spec.image, encoder.params["image"]
    reference, hidden, ranges = _reference(params, jnp.asarray(images, encoder.dtype), spec=spec, scheme=scheme)
    scales = scales_from_ranges(ranges, scheme.activation_bits)
    rounded = quantize_kernels(params["blocks"], scheme)
    num_blocks = spec.blocks.num_blocks
    errors = np.zeros((num_blocks, len(SITES)))
    for block in range(num_blocks):
        for column, chosen in enumerate(SITES):
            switch = {site: np.arange(num_blocks) == (block if site == chosen else -1) for site in SITES}
            features = _one_site(
                params, rounded, scales, hidden[block], switch, jnp.int32(block), spec=spec, scheme=scheme
            )
            errors[block, column] = float(jnp.mean(jnp.sum(jnp.square(features - reference), axis=-1)))
    return errors
