"""`quantize`: a float encoder in, the same tree with integer kernels and calibrated scales out (paper, section 5's setting)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.progress import Progress, heard
from regcache_jax.core.scheme import Scheme
from regcache_jax.data.cut import in_batches
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.finite import check_weights
from regcache_jax.quantization.calibration import Calibration, add_grids
from regcache_jax.quantization.kernels import quantize_kernels
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.methods.observed import observed
from regcache_jax.quantization.methods.table import methods_of
from regcache_jax.quantization.parts import quantize_head, quantize_text


def quantize(
    encoder: Encoder,
    images: Float[Array | np.ndarray, "n Y X 3"] | Iterable[Float[Array | np.ndarray, "_ Y X 3"]] | None,
    scheme: Scheme,
    plan: RegisterPlan | None = None,
    calibration: Calibration | None = None,
    texts: Int[Array | np.ndarray, "m T"] | None = None,
    progress: Progress | None = None,
) -> Encoder:
    """Quantises the image tower's blocks; embedding and norms stay float, and so do softmax, pooling head and text tower unless
    the scheme says otherwise (`products`, `also`).

    `images`: the calibration set (preprocessed), one array or an iterable of batches of one shape; may be None where the
    scheme measures its scales as it runs, or where a `calibration` was made before (with the same plan in place). It is streamed
    once, unless the scheme's method needs it several times. `texts`: padded ids, from which a text tower's scales are calibrated.
    `plan=None` keeps the plan that the encoder has. `progress` hears how many images have passed, over all passes.

    Raises UserError where a static scheme or a method has nothing to be calibrated on, and where a range, scale or weight is not finite."""
    if encoder.scheme is not None:
        raise UserError(f"{encoder.spec.name} is quantised already ({encoder.scheme.name})")
    scheme.check_rules(encoder.spec.image.blocks.num_blocks)
    methods = methods_of(scheme.method)
    encoder = encoder if plan is None else encoder.with_plan(plan)
    if scheme.calibrated and calibration is None and images is None:
        raise UserError(
            f"{scheme.activations} activation scales must be calibrated: give calibration images, "
            "or choose token or tensor scales"
        )
    only_ranges = not methods and scheme.symmetric and scheme.estimator == "absmax" and not scheme.rules
    batches: Iterable[Any] = (
        in_batches(images, fill=only_ranges) if isinstance(images, np.ndarray | Array) else (images or ())
    )
    preparing = [method.prepare for method in methods if method.prepare]
    if methods and images is None:
        raise UserError(f"method {scheme.method} needs calibration images")
    if calibration is not None and preparing:
        raise UserError(f"method {scheme.method} changes what passes the sites; give it images, not a calibration")
    needs = {need for method in methods if not method.prepare for need in method.needs}
    if preparing or "images" in needs or "head" in scheme.also:
        batches = list(batches)
    if progress is not None:
        passes = len(preparing) + 1 + sum(method.passes for method in methods) + ("head" in scheme.also)
        total = passes * len(images) if isinstance(images, np.ndarray | Array) else None
        batches = heard(batches, progress, total)
    for method in methods:
        if method.prepare:
            encoder = method.prepare(encoder, observed(encoder, batches, method.needs), scheme)
    seen = observed(encoder, batches, needs, scheme if scheme.calibrated and calibration is None else None)
    if calibration is not None and scheme.calibrated:
        seen = dataclasses.replace(seen, grids=calibration.grids(scheme))
    rounders = [method.round(encoder, seen, scheme) for method in methods if method.round]
    blocks = quantize_kernels(encoder.params.image.blocks, scheme, rounders[0] if rounders else None)
    blocks = add_grids(blocks, seen.grids, scheme) if scheme.calibrated else blocks
    quantized = with_blocks(encoder, jax.block_until_ready(blocks)).replace(scheme=scheme)
    for method in methods:
        quantized = method.finish(encoder, quantized, seen) if method.finish else quantized
    if "head" in scheme.also:
        quantized = quantize_head(encoder, quantized, batches)
    quantized = quantize_text(quantized, texts) if "text" in scheme.also else quantized
    check_weights(quantized, "image")
    return quantized
