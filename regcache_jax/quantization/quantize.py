"""`quantize`: a float encoder in, the same tree with integer kernels and calibrated scales out (paper, section 5's setting)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.data.cut import in_batches
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.finite import check_weights
from regcache_jax.quantization.calibration import Calibration, add_grids, find_grids
from regcache_jax.quantization.kernels import quantize_kernels
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.methods.method import Batches
from regcache_jax.quantization.methods.table import methods_of
from regcache_jax.quantization.parts import quantize_head, quantize_text


def quantize(
    encoder: Encoder,
    images: Float[Array | np.ndarray, "n Y X 3"] | Iterable[Float[Array | np.ndarray, "_ Y X 3"]] | None,
    scheme: Scheme,
    plan: RegisterPlan | None = None,
    calibration: Calibration | None = None,
    texts: Int[Array | np.ndarray, "m T"] | None = None,
) -> Encoder:
    """Quantises the image tower's blocks; embedding and norms stay float, and so do softmax, pooling head and text tower unless
    the scheme says otherwise (`products`, `also`).

    `images`: the calibration set (preprocessed), one array or an iterable of batches of one shape; may be None where the
    scheme measures its scales as it runs, or where a `calibration` was made before (with the same plan in place). It is streamed
    once, unless the scheme's method needs it several times. `texts`: padded ids, from which a text tower's scales are calibrated.
    `plan=None` keeps the plan that the encoder has. Raises UserError where a static scheme or a method has nothing to be
    calibrated on, and where a range, scale or weight is not finite."""
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
    streamed: Iterable[Any] = (
        in_batches(images, fill=only_ranges) if isinstance(images, np.ndarray | Array) else (images or ())
    )
    batches: Batches = list(streamed) if methods or "head" in scheme.also else ()
    if methods:
        if not batches:
            raise UserError(f"method {scheme.method} needs calibration images")
        if calibration is not None and any(method.prepare for method in methods):
            raise UserError(f"method {scheme.method} changes what passes the sites; give it images, not a calibration")
    for method in methods:
        encoder = method.prepare(encoder, batches, scheme) if method.prepare else encoder
    rounders = [method.rounder(encoder, batches, scheme) for method in methods if method.rounder]
    blocks = quantize_kernels(encoder.params.image.blocks, scheme, rounders[0] if rounders else None)
    if scheme.calibrated:
        blocks = add_grids(blocks, find_grids(encoder, batches or streamed, scheme, calibration), scheme)
    quantized = with_blocks(encoder, jax.block_until_ready(blocks)).replace(scheme=scheme)
    for method in methods:
        quantized = method.finish(encoder, quantized, batches) if method.finish else quantized
    if "head" in scheme.also:
        quantized = quantize_head(encoder, quantized, batches)
    quantized = quantize_text(quantized, texts) if "text" in scheme.also else quantized
    check_weights(quantized, "image")
    return quantized
