"""`quantize`: a float encoder in, the same tree with integer kernels and calibrated scales out (paper, section 5's setting)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.encoders.encoder import Encoder
from regcache_jax.errors import UserError
from regcache_jax.quantization.aqt import quantize_weight
from regcache_jax.quantization.calibrate import Ranges, calibrate, scales_from_ranges
from regcache_jax.quantization.scheme import SITES, Scheme
from regcache_jax.registers.plan import RegisterPlan

SITE_LAYERS: dict[str, tuple[tuple[str, str], ...]] = {
    "qkv": (("attention", "query"), ("attention", "key"), ("attention", "value")),
    "out": (("attention", "out"),),
    "fc1": (("mlp", "fc1"), ("mlp", "gate")),
    "fc2": (("mlp", "fc2"),),
}
"""The layers that read each site's input."""

INPUT_AXES = {"query": (1,), "key": (1,), "value": (1,), "out": (1, 2), "fc1": (1,), "gate": (1,), "fc2": (1,)}
"""Contracted axes of each stacked kernel (axis 0 is the block)."""


def in_batches(
    images: Float[Array | np.ndarray, "n Y X 3"], size: int = 64
) -> Iterator[Float[Array | np.ndarray, "B Y X 3"]]:
    """Cuts an array into batches of one shape (the last one repeats its last image: ranges do not change by that)."""
    for first in range(0, len(images), size):
        batch = images[first : first + size]
        missing = min(size, len(images)) - len(batch)
        yield np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch


def quantize_kernels(blocks: dict[str, Any], scheme: Scheme) -> dict[str, Any]:
    """Replaces the kernels of every site that the scheme quantises by integers."""
    blocks = {name: dict(group) if isinstance(group, dict) else group for name, group in blocks.items()}
    for site in SITES:
        for group, name in SITE_LAYERS[site]:
            if site not in scheme.float_sites and name in blocks[group]:
                layer = blocks[group][name]
                kernel = quantize_weight(
                    layer["kernel"], scheme.weight_bits, INPUT_AXES[name], scheme.weights == "channel"
                )
                blocks[group][name] = {**layer, "kernel": kernel}
    return blocks


def quantize(
    encoder: Encoder,
    images: Float[Array | np.ndarray, "n Y X 3"] | Iterable[Float[Array | np.ndarray, "B Y X 3"]] | None,
    scheme: Scheme,
    plan: RegisterPlan | None = None,
    ranges: Ranges | None = None,
) -> Encoder:
    """Quantises the image tower's blocks; embedding, norms, softmax, pooling head and text tower stay float.

    `images`: the calibration set (preprocessed), one array or an iterable of batches of one shape; may be None where the
    scheme measures its scales as it runs, or where `ranges` were calibrated before (with the same plan in place).
    `plan=None` keeps the plan that the encoder has. Raises UserError where a static scheme has nothing to be calibrated on."""
    if encoder.scheme is not None:
        raise UserError(f"{encoder.spec.name} is quantised already ({encoder.scheme.name})")
    encoder = encoder if plan is None else encoder.with_plan(plan)
    blocks = encoder.params["image"]["blocks"]
    quantized = quantize_kernels(blocks, scheme)
    if scheme.calibrated:
        if ranges is None:
            if images is None:
                raise UserError(
                    f"{scheme.activations} activation scales must be calibrated: give calibration images, "
                    "or choose token or tensor scales"
                )
            batches = in_batches(images) if isinstance(images, np.ndarray | Array) else images
            ranges = calibrate(encoder, batches, scheme)
        scales = scales_from_ranges(ranges, scheme.activation_bits)
        quantized["input_scale"] = {site: scale for site, scale in scales.items() if site not in scheme.float_sites}
    params = {**encoder.params, "image": {**encoder.params["image"], "blocks": jax.block_until_ready(quantized)}}
    return encoder.replace(params=params, scheme=scheme)
