"""Integer arithmetic: rounding to integers of a few bits, and products of them.

A `rounder` gives the integers and the straight-through gradient; the product is one `lax.dot_general` of int8 with int8 into int32.
Symmetric, the largest magnitude maps to 2**(bits - 1) - 1, and 6 and 4 bits live in int8 containers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Num

from regcache_jax.core.sites import QuantizedTensor
from regcache_jax.ops.rounders import Rounded, rounder


def largest_integer(bits: int) -> int:
    """127, 31 and 7 for 8, 6 and 4 bits."""
    return 2 ** (bits - 1) - 1


def scale_of(largest: Float[Array, "..."], bits: int) -> Float[Array, "..."]:
    """The scales by which `largest` (magnitudes) become the largest integer; 1 for a magnitude of zero."""
    return jnp.where(largest > 0, largest / largest_integer(bits), 1.0)


def quantize(
    inputs: Float[Array, "..."],
    bits: int,
    axes: tuple[int, ...],
    scale: Float[Array, "..."] | None = None,
    inverse: Float[Array, "..."] | None = None,
) -> tuple[QuantizedTensor, Callable[[Array], Array]]:
    """Rounds to integers of `bits`; the scale is shared along `axes` (measured) or given (broadcast to the inputs),
    `inverse` its reciprocal where that is at hand.

    Returns the integers with their scale, and the straight-through gradient: from the cotangent of the dequantised values to that of the
    inputs. An all-zero array is rounded as if its largest value were 1."""
    integers, scale, gradient = rounder()(inputs.astype(jnp.float32), largest_integer(bits), axes, scale, inverse)
    return QuantizedTensor(integers, scale), gradient


def shared_scale(inputs: Float[Array, "..."], bits: int, axis: str) -> Float[Array, "..."]:
    """The scale that `quantize` would measure for the arrays of all devices along a mapped axis together; rank of the inputs."""
    largest = jax.lax.pmax(jnp.max(jnp.abs(jax.lax.stop_gradient(inputs)).astype(jnp.float32)), axis)
    return quantize(largest.reshape((1,) * inputs.ndim), bits, tuple(range(inputs.ndim)))[0].scale


def quantize_weight(
    kernel: Float[Array, "..."],
    bits: int,
    contracted: tuple[int, ...],
    per_channel: bool = True,
    scale: Float[Array, "..."] | None = None,
) -> QuantizedTensor:
    """Quantises a kernel stacked over blocks on axis 0: a scale a block and output channel, or a scale a block.

    `contracted` are the kernel's input axes. `scale` replaces the measured one (broadcast to the kernel)."""
    axes = contracted if per_channel else tuple(range(1, kernel.ndim))
    return _round_weight(kernel, scale, bits=bits, axes=axes, rounds=rounder())


@functools.partial(jax.jit, static_argnames=("bits", "axes", "rounds"))
def _round_weight(
    kernel: Float[Array, "..."],
    scale: Float[Array, "..."] | None,
    *,
    bits: int,
    axes: tuple[int, ...],
    rounds: Callable[..., Rounded],
) -> QuantizedTensor:
    integers, scale, _ = rounds(kernel.astype(jnp.float32), largest_integer(bits), axes, scale)
    return QuantizedTensor(integers, scale)


def fake_quantize(
    inputs: Float[Array, "..."], bits: int, axes: tuple[int, ...], scale: Float[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """Quantises and dequantises in float: the same grid as the integers. The gradient passes straight through the rounding, to
    the inputs and to a scale that is given (rounded less exact steps inside its range, the last integer outside)."""
    inputs32 = inputs.astype(jnp.float32)
    quantized, _ = quantize(jax.lax.stop_gradient(inputs32), bits, axes, scale)
    largest = float(largest_integer(bits))
    steps = inputs32 / quantized.scale if scale is None else jnp.clip(inputs32 / scale, -largest, largest)
    rounded = steps + jax.lax.stop_gradient(quantized.values.astype(jnp.float32) - steps)
    return (rounded * (quantized.scale if scale is None else scale)).astype(inputs.dtype)


def integer_product(inputs: Int8[Array, "..."], kernel: Int8[Array, "..."], num_contracted: int) -> Num[Array, "..."]:
    """Contracts the last axes of `inputs` with the first of `kernel`: int8 x int8 -> int32, exact."""
    axes = (tuple(range(inputs.ndim - num_contracted, inputs.ndim)), tuple(range(num_contracted)))
    return jax.lax.dot_general(inputs, kernel, (axes, ((), ())), preferred_element_type=jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def quantized_matmul(
    left: Float[Array, "B H T C"],
    right: Float[Array, "B H C S"],
    left_scale: Float[Array, "1 1 1 1"] | None,
    right_scale: Float[Array, "1 1 1 1"] | None,
    bits: int,
    per_row: bool,
) -> Float[Array, "B H T S"]:
    """Multiplies two activations: int8 x int8 -> int32, then scales. A scale that is None is measured: one number for the array,
    or (`per_row`) one for every row of `left` and column of `right`. Gradients pass straight through; scales get none."""
    return _quantized_matmul_forward(left, right, left_scale, right_scale, bits, per_row)[0]


def _quantized_matmul_forward(
    left: Float[Array, "B H T C"],
    right: Float[Array, "B H C S"],
    left_scale: Float[Array, "1 1 1 1"] | None,
    right_scale: Float[Array, "1 1 1 1"] | None,
    bits: int,
    per_row: bool,
) -> tuple[Float[Array, "B H T S"], Any]:
    rows, left_gradient = quantize(left, bits, (3,) if per_row else (0, 1, 2, 3), left_scale)
    columns, right_gradient = quantize(right, bits, (2,) if per_row else (0, 1, 2, 3), right_scale)
    axes = (((3,), (2,)), ((0, 1), (0, 1)))
    sums = jax.lax.dot_general(rows.values, columns.values, axes, preferred_element_type=jnp.int32)
    product = sums.astype(jnp.float32) * (rows.scale * columns.scale)
    return product, (
        left_gradient,
        right_gradient,
        rows,
        columns,
        jnp.zeros((), left.dtype),
        jnp.zeros((), right.dtype),
    )


def _quantized_matmul_backward(
    bits: int, per_row: bool, residuals: Any, cotangent: Float[Array, "B H T S"]
) -> tuple[Array, Array, None, None]:
    left_gradient, right_gradient, rows, columns, like_left, like_right = residuals
    to_left = jnp.einsum("bhts,bhcs->bhtc", cotangent, columns.dequantize())
    to_right = jnp.einsum("bhts,bhtc->bhcs", cotangent, rows.dequantize())
    return left_gradient(to_left).astype(like_left.dtype), right_gradient(to_right).astype(like_right.dtype), None, None


quantized_matmul.defvjp(_quantized_matmul_forward, _quantized_matmul_backward)


Readers = tuple[tuple[Num[Array, "..."], Int8[Array, "..."]], ...]
"""What each of several products multiplies: the integers of their common input, and its own kernel."""


def made_once(values: Int8[Array, "..."], kernels: tuple[Int8[Array, "..."], ...]) -> Readers:
    """Keeps a compiler from making `values` again inside every product that reads them."""
    values = jax.lax.optimization_barrier(values)
    return tuple((values, kernel) for kernel in kernels)


def made_apart(values: Num[Array, "..."], kernels: tuple[Int8[Array, "..."], ...]) -> Readers:
    """The same, each reader behind a barrier of its own, joined to its kernel. XLA's GPU compiler would make one product of all, whose sums
    it writes as int32 for others to scale; apart, each product scales its own."""
    values = jax.lax.optimization_barrier(values)
    return tuple(jax.lax.optimization_barrier((values, kernel)) for kernel in kernels)


def made_once_wide(values: Int8[Array, "..."], kernels: tuple[Int8[Array, "..."], ...]) -> Readers:
    """The same integers, kept as float32 and narrowed by each product as it reads them, which a TPU does in passing; to pack
    four rows into one when they are written costs it as much as half the product (docs/performance_tried.md).

    Each reader stands behind a barrier of its own, joined to its kernel: or the readers would share one narrowing, packed."""
    return tuple((own.astype(jnp.int8), kernel) for own, kernel in made_apart(values.astype(jnp.float32), kernels))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def quantized_dense(
    inputs: Float[Array, "B N ..."],
    weights: tuple[QuantizedTensor, ...],
    scale: Float[Array, "..."] | None,
    bits: int,
    num_contracted: int,
    per_token: bool,
    product_scales: tuple[Float[Array, "..."] | None, ...] | None = None,
    inverse: Float[Array, "..."] | None = None,
) -> tuple[Float[Array, "..."], ...]:
    """Multiplies one input by several kernels, the input quantised once. Returns float32 products, one a kernel.

    `scale`: the calibrated scale, broadcast to `inputs`; None measures one, a token or for the whole array. `product_scales`:
    `scale` times each kernel's own, and `inverse` its reciprocal, where these were worked out before (None: they are here). Gradients pass
    straight through to `inputs`; integers and scales get none."""
    return _quantized_dense_forward(inputs, weights, scale, bits, num_contracted, per_token, product_scales, inverse)[0]


def _quantized_dense_forward(
    inputs: Float[Array, "B N ..."],
    weights: tuple[QuantizedTensor, ...],
    scale: Float[Array, "..."] | None,
    bits: int,
    num_contracted: int,
    per_token: bool,
    product_scales: tuple[Float[Array, "..."] | None, ...] | None,
    inverse: Float[Array, "..."] | None,
) -> tuple[tuple[Float[Array, "..."], ...], Any]:
    contracted = tuple(range(inputs.ndim - num_contracted, inputs.ndim))
    axes = contracted if per_token else tuple(range(inputs.ndim))
    quantized, gradient = quantize(inputs, bits, axes, scale, inverse)
    readers = jax.lax.platform_dependent(
        quantized.values,
        tuple(weight.values for weight in weights),
        tpu=made_once_wide,
        cuda=made_apart,
        default=made_once,
    )
    row_scale = jnp.squeeze(quantized.scale, contracted)
    products = []
    for weight, (values, kernel), product_scale in zip(
        weights, readers, product_scales or (None,) * len(weights), strict=True
    ):
        sums = integer_product(values, kernel, num_contracted)
        if product_scale is None:
            column_scale = jnp.squeeze(weight.scale, tuple(range(num_contracted)))
            product_scale = row_scale.reshape(row_scale.shape + (1,) * column_scale.ndim) * column_scale
        products.append(sums.astype(jnp.float32) * product_scale)
    return tuple(products), (gradient, weights, jnp.zeros((), inputs.dtype))


def _quantized_dense_backward(
    bits: int, num_contracted: int, per_token: bool, residuals: Any, cotangents: tuple[Float[Array, "..."], ...]
) -> tuple[Float[Array, "..."], None, None, None, None]:
    gradient, weights, like = residuals
    total: Any = 0.0
    for weight, cotangent in zip(weights, cotangents, strict=True):
        free = weight.values.ndim - num_contracted
        axes = (
            tuple(range(cotangent.ndim - free, cotangent.ndim)),
            tuple(range(num_contracted, weight.values.ndim)),
        )
        total = total + jax.lax.dot_general(cotangent, weight.dequantize(), (axes, ((), ())))
    return gradient(total).astype(like.dtype), None, None, None, None


quantized_dense.defvjp(_quantized_dense_forward, _quantized_dense_backward)
