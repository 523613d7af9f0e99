"""Layers that share one input, in float, in integers, or with the integers simulated: what happens at a site."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import PRODUCT_INPUTS, Scheme
from regcache_jax.core.sites import Dense, Grid, Grids, QuantizedTensor
from regcache_jax.core.spec import PATCHES_ONLY, BlockSpec, Protected
from regcache_jax.encoders.forms import PLAIN, Form
from regcache_jax.ops.attention import Rounding
from regcache_jax.ops.integers import fake_quantize, quantized_dense, scale_of, shared_scale
from regcache_jax.ops.rotary import Turn, turn_of


@dataclasses.dataclass(frozen=True)
class Run:
    """What a program of a stack is built around: its shape, how it is quantised (None: not at all), the tokens in front that are no
    patches, the rows and columns of the patches (None: as many), and the form of a serving program.

    `others`: static scales are not calibrated; each picture of the batch (a row) has those that these others of the batch give it."""

    spec: BlockSpec
    scheme: Scheme | None = None
    protected: Protected = PATCHES_ONLY
    grid: tuple[int, int] | None = None
    form: Form = PLAIN
    others: Bool[Array, "B B"] | None = None

    def grid_of(self, num_tokens: int) -> tuple[int, int]:
        """Rows and columns of the patches among all tokens of a picture. Raises ValueError where nothing says them."""
        side = math.isqrt(num_tokens - sum(self.protected))
        grid = self.grid or (side, side)
        if math.prod(grid) != num_tokens - sum(self.protected):
            raise ValueError(f"{num_tokens - sum(self.protected)} patches are no grid of {grid[0]} x {grid[1]}")
        return grid

    def turn(self, num_tokens: int, kept: Int[Array, "#B M"] | None = None, more: int = 0) -> Turn | None:
        """How rotary positions turn a picture's tokens, or those of them that are `kept`; None where there are none.

        `kept` are positions among all `num_tokens`, negative for what has no place in the picture. The last is repeated `more` times."""
        rotary = self.spec.rotary
        if rotary is None:
            return None
        position = jnp.arange(num_tokens, dtype=jnp.int32)[None] if kept is None else kept
        place = jnp.pad(position - sum(self.protected), ((0, 0), (0, more)), mode="edge")
        return turn_of(rotary, place, self.grid_of(num_tokens), self.spec.head_dim)


def token_groups(num_tokens: int, protected: Protected) -> Int[Array, "N"]:
    """The group of each token: 0 for a class token, 1 for trained registers, 2 for patches."""
    position = jnp.arange(num_tokens, dtype=jnp.int32)
    return jnp.where(position < protected.class_tokens, 0, jnp.where(position < sum(protected), 1, 2))


def token_scale(scale: Float[Array, "*G"], num_tokens: int, protected: Protected) -> Float[Array, "1 #N 1"]:
    """A site's calibrated scale, broadcast over tokens: one number, or one each for class token, registers and patches."""
    if scale.ndim == 0:
        return scale.reshape(1, 1, 1)
    return scale[token_groups(num_tokens, protected)].reshape(1, num_tokens, 1)


def scale_of_others(
    inputs: Float[Array, "B N ..."], others: Bool[Array, "B B"], bits: int, groups: Int[Array, "N"] | None
) -> Float[Array, "B #N ..."]:
    """The static scale (a token group) that other pictures of the batch give each one: calibration on them, in this very run."""
    magnitude = jnp.max(jnp.abs(inputs), axis=tuple(range(2, inputs.ndim))).astype(jnp.float32)
    alike = jnp.ones((1, inputs.shape[1]), bool) if groups is None else groups == jnp.arange(3)[:, None]
    own = jnp.max(jnp.where(alike[:, None], magnitude, 0.0), axis=2)  # [G, B]
    largest = jnp.max(jnp.where(others, own[:, None], 0.0), axis=2)
    scale = scale_of(largest, bits)
    each = scale[0][:, None] if groups is None else scale[groups].T
    return each.reshape(each.shape + (1,) * (inputs.ndim - 2))


def float_product(inputs: Float[Array, "B N ..."], layer: Dense) -> Float[Array, "B N ..."]:
    """A product in float, added up in float32; an integer kernel's scale is applied to the sums."""
    kernel, contracted = layer.kernel, tuple(range(layer.num_inputs))
    axes = tuple(range(inputs.ndim - layer.num_inputs, inputs.ndim)), contracted
    values = kernel.values if isinstance(kernel, QuantizedTensor) else kernel
    sums = jax.lax.dot_general(
        inputs, values.astype(inputs.dtype), (axes, ((), ())), preferred_element_type=jnp.float32
    )
    return sums * jnp.squeeze(kernel.scale, contracted) if isinstance(kernel, QuantizedTensor) else sums


def with_bias(product: Float[Array, "B N ..."], layer: Dense) -> Float[Array, "B N ..."]:
    """A layer's product and its bias, in float32."""
    return product if layer.bias is None else product + layer.bias.astype(jnp.float32)


def linear(inputs: Float[Array, "B N ..."], layer: Dense) -> Float[Array, "B N ..."]:
    """A layer whose input is not rounded."""
    return with_bias(float_product(inputs, layer), layer).astype(inputs.dtype)


def calibrated_scale(grid: Grid, site: str, scheme: Scheme) -> Float[Array, "*G"]:
    """A scale that was found by calibration. Raises UserError where there is none."""
    if grid.scale is None:
        raise UserError(f"the {scheme.activations} scale of site {site} was never calibrated; `quantize` does it")
    return grid.scale


def attention_rounding(grids: Grids, scheme: Scheme | None) -> Rounding | None:
    """How a block's products of attention are rounded (None: not at all)."""
    if scheme is None or not scheme.products:
        return None
    sites = [site for product in scheme.products for site in PRODUCT_INPUTS[product]] if scheme.calibrated else []
    scales = {site: calibrated_scale(grids.of(site), site, scheme).reshape(1, 1, 1, 1) for site in sites}
    shared_over = scheme.shared_over if scheme.activations == "tensor" else None
    per_token, logarithmic = scheme.activations == "token", scheme.softmax == "log-sqrt2"
    return Rounding(
        scheme.products, scheme.activation_bits, scales, per_token, grids.softmax_low, shared_over, logarithmic
    )


def input_grid(
    inputs: Float[Array, "B N ..."], grid: Grid, site: str, scheme: Scheme, run: Run
) -> tuple[Float[Array, "..."] | None, Float[Array, "..."] | None]:
    """A site's static scale (None: measured as it passes) and what is added before rounding (None: nothing), broadcast
    to its input. Raises UserError where a scale should have been calibrated."""
    bits = scheme.at(site).activation_bits
    if scheme.activations == "tensor" and scheme.shared_over is not None:
        return shared_scale(inputs, bits, scheme.shared_over), None
    if not scheme.calibrated:
        return None, None
    if run.others is not None:
        groups = token_groups(inputs.shape[1], run.protected) if scheme.activations == "group" else None
        return scale_of_others(inputs, run.others, bits, groups), None
    calibrated = calibrated_scale(grid, site, scheme)
    if calibrated.ndim > 1:  # of every token and channel: a simulation's
        return calibrated, grid.offset
    scale = token_scale(calibrated, inputs.shape[1], run.protected)
    return scale.reshape(scale.shape + (1,) * (inputs.ndim - 3)), grid.offset


def round_input(
    inputs: Float[Array, "B N ..."], grid: Grid, site: str, scheme: Scheme, run: Run
) -> Float[Array, "B N ..."]:
    """What the integers of a site's input stand for, in float: the same grid, with a straight-through gradient."""
    scale, offset = input_grid(inputs, grid, site, scheme, run)
    axes = tuple(range(2 if scheme.activations == "token" else 0, inputs.ndim))
    bits = scheme.at(site).activation_bits
    if grid.negative is not None:
        halves = (jnp.maximum(inputs, 0), scale), (jnp.minimum(inputs, 0), grid.negative.reshape(1, 1, 1))
        return sum((fake_quantize(half, bits, axes, step) for half, step in halves), jnp.zeros_like(inputs))
    if offset is None:
        return fake_quantize(inputs, bits, axes, scale)
    rounded = fake_quantize(inputs.astype(jnp.float32) + offset, bits, axes, scale)
    return (rounded - offset).astype(inputs.dtype)


def dense(
    inputs: Float[Array, "B N ..."],
    layers: tuple[Dense, ...],
    site: str,
    run: Run,
    grid: Grid,
    present: Bool[Array, "B N"] | None = None,
    dtype: Any = None,
) -> list[Float[Array, "B N ..."]]:
    """Applies layers that share one input: float kernels, integer kernels, or float kernels with a simulated integer
    input (a scheme over float kernels; `grid.enabled` may turn it off). `dtype` of what they give: the input's, if None."""
    with jax.named_scope(site):  # what a profiler calls it
        scheme = run.scheme
        if scheme is not None and (scheme.activations == "float" or site in scheme.float_sites):
            scheme = None
        if scheme is not None and present is not None:  # what is absent must not stretch a measured scale
            inputs = jnp.where(present.reshape(present.shape + (1,) * (inputs.ndim - 2)), inputs, 0)
        if scheme is not None and isinstance(layers[0].kernel, QuantizedTensor):
            products = _integer_products(inputs, layers, site, scheme, run, grid)
        else:
            if scheme is not None:
                simulated = round_input(inputs, grid, site, scheme, run)
                inputs = simulated if grid.enabled is None else jnp.where(grid.enabled, simulated, inputs)
            products = tuple(float_product(inputs, layer) for layer in layers)
        return [with_bias(*pair).astype(dtype or inputs.dtype) for pair in zip(products, layers, strict=True)]


def _integer_products(
    inputs: Float[Array, "B N ..."],
    layers: tuple[Dense, ...],
    site: str,
    scheme: Scheme,
    run: Run,
    grid: Grid,
) -> tuple[Float[Array, "B N ..."], ...]:
    """Products of the rounded input with integer kernels: int8 x int8 -> int32, then scales."""
    scale, offset = input_grid(inputs, grid, site, scheme, run)
    shifted = inputs if offset is None else inputs.astype(jnp.float32) + offset  # the biases have it folded in
    multiply = functools.partial(
        quantized_dense,
        weights=tuple(layer.kernel for layer in layers),
        product_scales=tuple(layer.product_scale for layer in layers),
        bits=scheme.at(site).activation_bits,
        num_contracted=layers[0].num_inputs,
        per_token=scheme.activations == "token",
    )
    if grid.negative is None:
        inverse = None if grid.inverse is None else grid.inverse.reshape((1,) * inputs.ndim)
        return multiply(shifted, scale=scale, inverse=inverse)
    above = multiply(jnp.maximum(shifted, 0), scale=scale)
    below = multiply(jnp.minimum(shifted, 0), scale=grid.negative.reshape(1, 1, 1))
    return tuple(one + other for one, other in zip(above, below, strict=True))
