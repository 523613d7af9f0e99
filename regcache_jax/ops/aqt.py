"""Integer arithmetic: everything that touches AQT, so that another library can take its place.

AQT's quantiser and numerics give the integers and the straight-through gradient; the product is one
`lax.dot_general` of int8 with int8 into int32. Symmetric, the largest magnitude maps to 2**(bits - 1) - 1, and 6 and 4
bits live in int8 containers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from aqt.jax.v2 import aqt_quantizer, aqt_tensor, calibration
from aqt.jax.v2 import utils as aqt_context
from aqt.jax.v2.numerics import int_numerics
from jaxtyping import Array, Float, Int8, Num

from regcache_jax.core.sites import QuantizedTensor

LAST_PLACE = 1.5 * 2.0**23
"""Added to a small float32, it leaves the nearest integer in the last bits: beyond 2**23 a float32 has no fractions."""


def largest_integer(bits: int) -> int:
    """127, 31 and 7 for 8, 6 and 4 bits."""
    return 2 ** (bits - 1) - 1


def _nearest(
    self: int_numerics.IntSymmetric, x: Float[Array, "..."], context: aqt_context.Context
) -> tuple[Int8[Array, "..."], tuple[Float[Array, "..."]]]:
    """Integers within their bits, half-way to even, and what AQT's gradient needs. The integer that one addition leaves is read from the
    bits, as a compiler may fold a subtraction away (XLA's for CPUs does). On a TPU this costs less than `round`."""
    largest = float(largest_integer(self.bits))
    bits = jax.lax.bitcast_convert_type(jnp.clip(x, -largest, largest) + LAST_PLACE, jnp.int32)
    zero = jax.lax.bitcast_convert_type(jnp.float32(LAST_PLACE), jnp.int32)
    return (bits - zero).astype(jnp.int8), (x,)


# not by `class`: the checks of annotations in tests would read those that it inherits
_Numerics = type("_Numerics", (int_numerics.IntSymmetric,), {"vjp_fwd": _nearest})


def _quantizer(bits: int, clip_gradient: bool = False) -> aqt_quantizer.Quantizer:
    """AQT's quantiser in our convention. `clip_gradient` only with known scales: with a measured one the largest
    element sits within rounding of the bound, and its gradient would be masked by chance."""
    quantizer = aqt_quantizer.Quantizer(
        numerics=_Numerics(
            bits=bits,
            preserve_zero=True,
            preserve_max_val=True,
            clip=True,
            clip_gradient=clip_gradient,
            round=True,
            noise_fn=None,
            dtype=jnp.int8,
        ),
        calib_shared_axes=None,
        scale_stop_grad=True,
        scale_dtype=jnp.float32,
        calibration=calibration.AbsMaxCalibration,
        context=aqt_context.Context(key=None, train_step=None),
    )
    quantizer.init_calibration()
    return quantizer


def quantize(
    inputs: Float[Array, "..."], bits: int, axes: tuple[int, ...], scale: Float[Array, "..."] | None = None
) -> tuple[QuantizedTensor, Any]:
    """Rounds to integers of `bits`; the scale is shared along `axes` (measured) or given (broadcast to the inputs).

    Returns the integers with their scale, and AQT's straight-through gradient (a function from the cotangent of the
    dequantised values to a one-tuple with that of the inputs). An all-zero array gets scale 1."""
    inputs = inputs.astype(jnp.float32)
    quantizer = _quantizer(bits, clip_gradient=scale is not None)
    if scale is None:
        incomplete = quantizer.calibrate(inputs, calibration_axes=axes)
    else:
        incomplete = aqt_tensor.QTensor(qvalue=None, scale=[scale], scale_t=None, bias=[], dequant_dtype=jnp.float32)
    complete, gradient = quantizer.calculate_qvalue(inputs, incomplete)
    return QuantizedTensor(complete.qvalue, complete.scale[0]), gradient


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
    return quantize(kernel, bits, axes, scale)[0]


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
    with jax.numpy_dtype_promotion("standard"):  # AQT multiplies the gradient by a bool mask
        gradients = left_gradient(to_left)[0], right_gradient(to_right)[0]
    return gradients[0].astype(like_left.dtype), gradients[1].astype(like_right.dtype), None, None


quantized_matmul.defvjp(_quantized_matmul_forward, _quantized_matmul_backward)


Readers = tuple[tuple[Int8[Array, "..."], Int8[Array, "..."]], ...]
"""What each of several products multiplies: the integers of their common input, and its own kernel."""


def made_once(values: Int8[Array, "..."], kernels: tuple[Int8[Array, "..."], ...]) -> Readers:
    """Keeps a compiler from making `values` again inside every product that reads them."""
    values = jax.lax.optimization_barrier(values)
    return tuple((values, kernel) for kernel in kernels)


def made_once_wide(values: Int8[Array, "..."], kernels: tuple[Int8[Array, "..."], ...]) -> Readers:
    """The same integers, kept as float32 and narrowed by each product as it reads them, which a TPU does in passing; to pack
    four rows into one when they are written costs it as much as half the product (docs/performance.md).

    Each reader stands behind a barrier of its own, joined to its kernel: or the readers would share one narrowing, packed."""
    wide = jax.lax.optimization_barrier(values.astype(jnp.float32))
    apart = [jax.lax.optimization_barrier((wide, kernel)) for kernel in kernels]
    return tuple((own.astype(jnp.int8), kernel) for own, kernel in apart)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def quantized_dense(
    inputs: Float[Array, "B N ..."],
    weights: tuple[QuantizedTensor, ...],
    scale: Float[Array, "..."] | None,
    bits: int,
    num_contracted: int,
    per_token: bool,
    product_scales: tuple[Float[Array, "..."] | None, ...] | None = None,
) -> tuple[Float[Array, "..."], ...]:
    """Multiplies one input by several kernels, the input quantised once. Returns float32 products, one a kernel.

    `scale`: the calibrated scale, broadcast to `inputs`; None measures one, a token or for the whole array. `product_scales`:
    `scale` times each kernel's own, where that was worked out before (None: it is here). Gradients pass
    straight through to `inputs`; integers and scales get none."""
    return _quantized_dense_forward(inputs, weights, scale, bits, num_contracted, per_token, product_scales)[0]


def _quantized_dense_forward(
    inputs: Float[Array, "B N ..."],
    weights: tuple[QuantizedTensor, ...],
    scale: Float[Array, "..."] | None,
    bits: int,
    num_contracted: int,
    per_token: bool,
    product_scales: tuple[Float[Array, "..."] | None, ...] | None,
) -> tuple[tuple[Float[Array, "..."], ...], Any]:
    contracted = tuple(range(inputs.ndim - num_contracted, inputs.ndim))
    axes = contracted if per_token else tuple(range(inputs.ndim))
    quantized, gradient = quantize(inputs, bits, axes, scale)
    readers = jax.lax.platform_dependent(
        quantized.values, tuple(weight.values for weight in weights), tpu=made_once_wide, default=made_once
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
) -> tuple[Float[Array, "..."], None, None, None]:
    gradient, weights, like = residuals
    total: Any = 0.0
    for weight, cotangent in zip(weights, cotangents, strict=True):
        free = weight.values.ndim - num_contracted
        axes = (
            tuple(range(cotangent.ndim - free, cotangent.ndim)),
            tuple(range(num_contracted, weight.values.ndim)),
        )
        total = total + jax.lax.dot_general(cotangent, weight.dequantize(), (axes, ((), ())))
    with jax.numpy_dtype_promotion("standard"):  # AQT multiplies the gradient by a bool mask
        return gradient(total)[0].astype(like.dtype), None, None, None


quantized_dense.defvjp(_quantized_dense_forward, _quantized_dense_backward)
