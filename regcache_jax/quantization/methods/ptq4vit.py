"""PTQ4ViT (Yuan et al. 2022, arXiv 2111.12293): twin quantisers, and scales guided by the Hessian.

Scales of weights and activations are those, of shares of the largest magnitude, with the least error of a layer's products
weighted by squared gradients. The outputs of GELU get one scale for their negative half, which covers all of it, and a
searched one for their positive half; softmax, where its product is integer, a lower range whose end is searched among powers
of two. What differs from the authors' code (the full text was not at hand): gradients are those of the features (see
`fisher`); weights are searched first, before rounded activations, and then activations, once (the authors' code goes round
three times); the two halves are two integer products whose sums are added with their own scales, so that these need no ratio
of a power of two, and cost `fc2` twice; integers end at -127, not at -128; query, key and value keep the scales of the
calibration; patch embedding and head stay in float.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Dense, Grid, ImageTower, QuantizedTensor
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.rounding import calibrated_scale
from regcache_jax.encoders.vision import image_features
from regcache_jax.ops.attention import Rounding, integer_mix
from regcache_jax.ops.integers import fake_quantize, largest_integer, quantize_weight, scale_of
from regcache_jax.quantization.kernels import Rounder, quantized_cells
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed

SHARES = tuple(0.01 + number * 1.19 / 50 for number in range(50))
"""Of the largest magnitude, as in the authors' code, half as many."""
SPLITS = tuple(2.0**-power for power in range(1, 13))
"""Candidates for the end of softmax's lower range."""
SPLIT_IMAGES = 4


@functools.partial(jax.jit, static_argnames=("bits", "per_channel"))
def weight_scales(
    inputs: Float[Array, "S C"],
    exact: Float[Array, "S M"],
    gradients: Float[Array, "S M"],
    kernel: Float[Array, "C M"],
    widest: Float[Array, "1 M"],
    bits: int,
    per_channel: bool,
) -> Float[Array, "1 M"]:
    """For every output channel (or for all) the scale, of shares of `widest`, with the least weighted error of the products."""

    def error(share: Float[Array, ""]) -> Float[Array, "1 M"]:
        rounded = fake_quantize(kernel, bits, (0,), widest * share)
        each = jnp.mean(jnp.square(gradients * (inputs @ rounded - exact)), axis=0, keepdims=True)
        return each if per_channel else jnp.broadcast_to(jnp.sum(each), each.shape)

    shares = jnp.array(SHARES, jnp.float32)
    return widest * shares[jnp.argmin(jax.lax.map(error, shares), axis=0)]


@functools.partial(jax.jit, static_argnames=("bits",))
def activation_scale(
    inputs: Float[Array, "S C"],
    exact: Float[Array, "S M"],
    gradients: Float[Array, "S M"],
    rounded: Float[Array, "C M"],
    widest: Float[Array, ""],
    negative: Float[Array, ""] | None,
    bits: int,
) -> Float[Array, ""]:
    """The scale, of shares of `widest`, with the least weighted error of the products of rounded inputs and weights.

    With a scale for the `negative` half, the one for the positive half."""

    def error(share: Float[Array, ""]) -> Float[Array, ""]:
        scale = (widest * share).reshape(1, 1)
        if negative is None:
            simulated = fake_quantize(inputs, bits, (0, 1), scale)
        else:
            below = fake_quantize(jnp.minimum(inputs, 0.0), bits, (0, 1), negative.reshape(1, 1))
            simulated = fake_quantize(jnp.maximum(inputs, 0.0), bits, (0, 1), scale) + below
        return jnp.mean(jnp.square(gradients * (simulated @ rounded - exact)))

    shares = jnp.array(SHARES, jnp.float32)
    return widest * shares[jnp.argmin(jax.lax.map(error, shares))]


def ptq4vit_rounder(encoder: Encoder, seen: Observed, scheme: Scheme) -> Rounder:
    """Rounds to the nearest, with the scales of least weighted error."""
    felt = seen.felt
    assert felt is not None

    def rounder(site: str, name: str, layer: Dense, bits: int) -> QuantizedTensor:
        kernel, matrices = layer.floats, layer.matrix()
        per_channel, found = scheme.weights == "channel", []
        for inputs, gradients, each in zip(felt.inputs[site], felt.gradients[name], matrices, strict=True):
            peak = jnp.max(jnp.abs(each), axis=0 if per_channel else None, keepdims=True)
            widest = scale_of(peak, bits)
            widest = jnp.broadcast_to(widest, (1, each.shape[1]))
            found.append(weight_scales(inputs, inputs @ each, gradients, each, widest, bits, per_channel))
        axes = layer.num_inputs
        scale = jnp.stack(found).reshape(len(kernel), *(1,) * axes, *kernel.shape[1 + axes :])
        if scheme.weights == "tensor":
            scale = scale.reshape(len(kernel), -1)[:, 0].reshape(-1, *(1,) * (kernel.ndim - 1))
        return quantize_weight(kernel, bits, layer.input_axes, scale=scale)

    return rounder


def ptq4vit_scales(encoder: Encoder, quantized: Encoder, seen: Observed) -> Encoder:
    """Replaces the activations' scales. Raises UserError for scales that are not static, per tensor and symmetric."""
    scheme, felt = quantized.scheme, seen.felt
    assert scheme is not None and felt is not None
    if scheme.activations != "static" or not scheme.symmetric:
        raise UserError("method ptq4vit goes with symmetric static activation scales")
    spec = encoder.spec.image.blocks
    originals, blocks = encoder.params.image.blocks, quantized.params.image.blocks
    grids: dict[str, Grid] = {}
    for site in SITES:
        layers, own = originals.layers(site), blocks.layers(site)
        twin, found = site == "fc2" and not spec.gated_mlp, []
        for block in range(spec.num_blocks):
            if not quantized_cells(scheme, site, spec.num_blocks)[block]:
                found.append((1.0, 1.0))
                continue
            bits = scheme.at(site, block).activation_bits
            lower, upper = (float(end) for end in _ends(seen.extremes[site][block], bits))
            below = jnp.float32(lower) if twin else None
            widest = jnp.float32(upper if twin else max(lower, upper))
            kernel, rounded_kernel = (
                jnp.concatenate([layer.matrix()[block] for layer in each.values()], axis=-1) for each in (layers, own)
            )
            gradients = jnp.concatenate([felt.gradients[name][block] for name in layers], axis=-1)
            inputs = felt.inputs[site][block]
            best = activation_scale(inputs, inputs @ kernel, gradients, rounded_kernel, widest, below, bits)
            found.append((float(best), lower))
        if blocks.grids.of(site).scale is not None:
            scale, negative = (jnp.array(column, jnp.float32) for column in zip(*found, strict=True))
            grids[site] = Grid(scale, negative=negative if twin else None)
    blocks = blocks.with_grids(grids)
    if "pv" in scheme.products:
        assert seen.first is not None
        value_scale = calibrated_scale(blocks.grids.of("value"), "value", scheme)
        low = softmax_scales(encoder, value_scale, seen.first, scheme.activation_bits)
        blocks = blocks.replace(grids=blocks.grids.replace(softmax_low=low))
    return with_blocks(quantized, blocks)


def _ends(extremes: Float[Array, "2 C"], bits: int) -> tuple[Array, Array]:
    """Scales that cover the negative and the positive half."""
    return scale_of(-jnp.min(extremes[0]), bits), scale_of(jnp.max(extremes[1]), bits)


def _attention_of(trace: BlockTrace, padded: bool) -> tuple[Array, Array]:
    """Softmax and values; rows of a padded picture that are no tokens attend to nothing."""
    there = trace.present if padded else None
    weights = trace.weights if there is None else jnp.where(there[:, None, :, None], trace.weights, 0)
    return weights, trace.value


@functools.partial(jax.jit, static_argnames="spec")
def _attention(
    tower: ImageTower, images: Float[Array, "B Y X 3"], plan: RegisterPlan | None, *, spec: ImageSpec
) -> tuple[Array, Array]:
    collect = {"attention": functools.partial(_attention_of, padded=spec.blocks.padded)}
    return image_features(tower, images, spec, plan=plan, collect=collect).collected["attention"]


def softmax_scales(
    encoder: Encoder, value_scale: Float[Array, "L"], images: Float[Array | np.ndarray, "_ _ _ 3"], bits: int
) -> Float[Array, "L"]:
    """For every block the scale of softmax's lower range with the least squared error of the mixed values."""
    images = jnp.asarray(images[:SPLIT_IMAGES], encoder.dtype)
    weights, values = _attention(encoder.params.image, images, encoder.plan, spec=encoder.spec.image)
    lows = jnp.array(SPLITS, jnp.float32) / largest_integer(bits)
    rows = zip(weights.astype(jnp.float32), values.astype(jnp.float32), value_scale, strict=True)
    return jnp.stack([lows[jnp.argmin(jnp.stack([_mix_error(*row, low, bits) for low in lows]))] for row in rows])


@functools.partial(jax.jit, static_argnames="bits")
def _mix_error(
    weights: Float[Array, "B H N S"],
    value: Float[Array, "B N H K"],
    scale: Float[Array, ""],
    low: Float[Array, ""],
    bits: int,
) -> Float[Array, ""]:
    """The terms that are rounded are softmax over its largest weight."""
    total = jnp.max(weights, axis=-1, keepdims=True)
    terms = weights / jnp.maximum(total, 1e-30)
    rounding = Rounding(("pv",), bits, {"value": scale.reshape(1, 1, 1, 1)}, False, low)
    exact = jnp.einsum("bhts,bshk->bthk", weights, value)
    return jnp.mean(jnp.square(integer_mix(terms, value, rounding) * jnp.swapaxes(total, 1, 2) - exact))


METHOD = Method(
    "ptq4vit",
    "scales by the error that the features feel; two scales for GELU and softmax",
    ("extremes", "felt", "first"),
    round=ptq4vit_rounder,
    finish=ptq4vit_scales,
)
