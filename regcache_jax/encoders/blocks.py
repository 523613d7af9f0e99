"""The functional block stack: state in, state out, float or integer kernels, with or without registers.

`run_blocks` runs any range of the stacked blocks from any hidden state with one `lax.scan`. This is the *search form*: a plan's
block numbers, copies and counts are arrays, deleted tokens are masked, and every plan runs in the same program. The
*serving form* (static segments, deletion that shrinks N) is built on it in `serving`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import BlockRegister, RegisterPlan
from regcache_jax.core.scheme import PRODUCT_INPUTS, SITE_LAYERS, Scheme
from regcache_jax.core.spec import Activation, BlockSpec
from regcache_jax.ops.aqt import QuantizedTensor, fake_quantize, quantized_dense, shared_scale
from regcache_jax.ops.attention import Rounding, attend, attend_slot
from regcache_jax.ops.delete import mark_largest
from regcache_jax.ops.gelu import gelu_for_integers

Params = dict[str, Any]

ACTIVATIONS: dict[Activation, Callable[[Float[Array, "..."]], Float[Array, "..."]]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}

INTEGER_ACTIVATIONS: dict[Activation, Callable[[Float[Array, "..."]], Float[Array, "..."]]] = {
    **ACTIVATIONS,
    "gelu": gelu_for_integers,
}
"""What runs in front of an integer second MLP layer."""


class BlockTrace(NamedTuple):
    """What passes through one block: its input, the inputs of the four sites, and attention. Collectors read it."""

    hidden: Float[Array, "B N D"]
    qkv: Float[Array, "B N D"]
    query: Float[Array, "B N H K"]
    key: Float[Array, "B N H K"]
    value: Float[Array, "B N H K"]
    weights: Float[Array, "B H N S"]
    register_weights: Float[Array, "B H N R"] | None
    out: Float[Array, "B N H K"]
    fc1: Float[Array, "B N D"]
    fc2: Float[Array, "B N F"]
    present: Bool[Array, "B N"] | None


Collectors = Mapping[str, Callable[[BlockTrace], Any]]


class BlocksOutput(NamedTuple):
    """The residual stream after the last block run, which tokens are still there (None: all), and what was collected,
    each with the axis of the blocks in front."""

    hidden: Float[Array, "B N D"]
    present: Bool[Array, "B N"] | None
    collected: dict[str, Any]


def layer_norm(hidden: Float[Array, "*B D"], params: Params, eps: float) -> Float[Array, "*B D"]:
    """LayerNorm over the last axis, computed in float32 in one pass (mean of squares less squared mean)."""
    hidden32 = hidden.astype(jnp.float32)
    mean = jnp.mean(hidden32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(hidden32), axis=-1, keepdims=True) - jnp.square(mean)
    normed = (hidden32 - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + eps)
    return (normed * params["scale"].astype(jnp.float32) + params["bias"].astype(jnp.float32)).astype(hidden.dtype)


def token_scale(scale: Float[Array, "*G"], num_tokens: int, leading: tuple[int, int]) -> Float[Array, "1 #N 1"]:
    """A site's calibrated scale, broadcast over tokens: one number, or one each for class token, registers and patches."""
    if scale.ndim == 0:
        return scale.reshape(1, 1, 1)
    class_tokens, registers = leading
    position = jnp.arange(num_tokens, dtype=jnp.int32)
    group = jnp.where(position < class_tokens, 0, jnp.where(position < class_tokens + registers, 1, 2))
    return scale[group].reshape(1, num_tokens, 1)


def float_product(
    inputs: Float[Array, "B N ..."], kernel: Float[Array, "..."] | QuantizedTensor, num_contracted: int
) -> Float[Array, "B N ..."]:
    """A product in float, added up in float32; an integer kernel's scale is applied to the sums."""
    axes = tuple(range(inputs.ndim - num_contracted, inputs.ndim)), tuple(range(num_contracted))
    values = kernel.values if isinstance(kernel, QuantizedTensor) else kernel
    sums = jax.lax.dot_general(
        inputs, values.astype(inputs.dtype), (axes, ((), ())), preferred_element_type=jnp.float32
    )
    return sums * jnp.squeeze(kernel.scale, axes[1]) if isinstance(kernel, QuantizedTensor) else sums


NEGATIVE = "fc2_negative"
"""Name of the scale of the negative half of `fc2`'s input, where a method gives the halves scales of their own."""
SOFTMAX_LOW = "softmax_low"
"""Name of the scale of softmax's lower range, where a method gives it two."""


def calibrated_scale(block: Params, site: str, scheme: Scheme) -> Float[Array, "*G"]:
    """A scale that was found by calibration. Raises UserError where there is none."""
    if site not in block.get("input_scale", {}):
        raise UserError(f"the {scheme.activations} scale of site {site} was never calibrated; `quantize` does it")
    return block["input_scale"][site]


def attention_rounding(block: Params, scheme: Scheme | None) -> Rounding | None:
    """How a block's products of attention are rounded (None: not at all)."""
    if scheme is None or not scheme.products:
        return None
    sites = [site for product in scheme.products for site in PRODUCT_INPUTS[product]] if scheme.calibrated else []
    scales = {site: calibrated_scale(block, site, scheme).reshape(1, 1, 1, 1) for site in sites}
    low = block.get("input_scale", {}).get(SOFTMAX_LOW)
    shared_over = scheme.shared_over if scheme.activations == "tensor" else None
    per_token, logarithmic = scheme.activations == "token", scheme.softmax == "log-sqrt2"
    return Rounding(scheme.products, scheme.activation_bits, scales, per_token, low, shared_over, logarithmic)


def input_grid(
    inputs: Float[Array, "B N ..."], block: Params, site: str, scheme: Scheme, leading: tuple[int, int]
) -> tuple[Float[Array, "..."] | None, Float[Array, "..."] | None]:
    """A site's calibrated scale (None: measured as it passes) and what is added before rounding (None: nothing), broadcast
    to its input. Raises UserError where a scale should have been calibrated."""
    if scheme.activations == "tensor" and scheme.shared_over is not None:
        return shared_scale(inputs, scheme.at(site).activation_bits, scheme.shared_over), None
    if not scheme.calibrated:
        return None, None
    scale = token_scale(calibrated_scale(block, site, scheme), inputs.shape[1], leading)
    scale = scale.reshape(scale.shape + (1,) * (inputs.ndim - 3))
    return scale, block.get("input_offset", {}).get(site)


def round_input(
    inputs: Float[Array, "B N ..."], block: Params, site: str, scheme: Scheme, leading: tuple[int, int]
) -> Float[Array, "B N ..."]:
    """What the integers of a site's input stand for, in float: the same grid, with a straight-through gradient."""
    scale, offset = input_grid(inputs, block, site, scheme, leading)
    axes = tuple(range(2 if scheme.activations == "token" else 0, inputs.ndim))
    bits = scheme.at(site).activation_bits
    if site == "fc2" and NEGATIVE in block.get("input_scale", {}):
        halves = (
            (jnp.maximum(inputs, 0), scale),
            (jnp.minimum(inputs, 0), block["input_scale"][NEGATIVE].reshape(1, 1, 1)),
        )
        return sum((fake_quantize(half, bits, axes, step) for half, step in halves), jnp.zeros_like(inputs))
    if offset is None:
        return fake_quantize(inputs, bits, axes, scale)
    rounded = fake_quantize(inputs.astype(jnp.float32) + offset, bits, axes, scale)
    return (rounded - offset).astype(inputs.dtype)


def dense(
    inputs: Float[Array, "B N ..."],
    layers: tuple[Params, ...],
    num_contracted: int,
    *,
    block: Params,
    site: str,
    scheme: Scheme | None,
    leading: tuple[int, int],
    present: Bool[Array, "B N"] | None,
) -> list[Float[Array, "B N ..."]]:
    """Applies layers that share one input: float kernels, integer kernels, or float kernels with a simulated integer
    input (a scheme over float kernels; `block["switch"][site]` may turn it off by a traced flag)."""
    kernels = tuple(layer["kernel"] for layer in layers)
    if scheme is not None and (scheme.activations == "float" or site in scheme.float_sites):
        scheme = None
    if scheme is not None and present is not None:  # what is absent must not stretch a measured scale
        inputs = jnp.where(present.reshape(present.shape + (1,) * (inputs.ndim - 2)), inputs, 0)
    if scheme is not None and isinstance(kernels[0], QuantizedTensor):
        scale, offset = input_grid(inputs, block, site, scheme, leading)
        shifted = inputs if offset is None else inputs.astype(jnp.float32) + offset  # the biases have it folded in
        run = functools.partial(
            quantized_dense, weights=kernels, product_scales=tuple(layer.get("product_scale") for layer in layers),
            bits=scheme.at(site).activation_bits, num_contracted=num_contracted,
            per_token=scheme.activations == "token",
        )  # fmt: skip
        if site == "fc2" and NEGATIVE in block.get("input_scale", {}):
            negative = block["input_scale"][NEGATIVE].reshape(1, 1, 1)
            pairs = zip(
                run(jnp.maximum(shifted, 0), scale=scale), run(jnp.minimum(shifted, 0), scale=negative), strict=True
            )
            products = tuple(above + below for above, below in pairs)
        else:
            products = run(shifted, scale=scale)
    else:
        if scheme is not None:
            simulated = round_input(inputs, block, site, scheme, leading)
            inputs = jnp.where(block["switch"][site], simulated, inputs) if "switch" in block else simulated
        products = tuple(float_product(inputs, kernel, num_contracted) for kernel in kernels)
    biased = (
        product + layer["bias"].astype(jnp.float32) if "bias" in layer else product
        for product, layer in zip(products, layers, strict=True)
    )
    return [output.astype(inputs.dtype) for output in biased]


def encoder_block(
    params: Params,
    hidden: Float[Array, "B N D"],
    spec: BlockSpec,
    *,
    register: BlockRegister | None = None,
    slot: int | None = None,
    bias: Float[Array, "#B #H #N N"] | None = None,
    present: Bool[Array, "B N"] | None = None,
    scheme: Scheme | None = None,
    leading: tuple[int, int] = (0, 0),
) -> tuple[Float[Array, "B N D"], BlockTrace]:
    """One pre-norm block: attention (with the register's row, if any) and MLP, each added to the residual stream."""

    def apply(
        inputs: Float[Array, "B N ..."], names: tuple[str, ...], group: str, num_contracted: int, site: str
    ) -> list[Float[Array, "B N ..."]]:
        layers = tuple(params[group][name] for name in names)
        return dense(
            inputs, layers, num_contracted, block=params, site=site, scheme=scheme, leading=leading, present=present
        )

    normed = layer_norm(hidden, params["norm1"], spec.norm_eps)
    query, key, value = apply(normed, ("query", "key", "value"), "attention", 1, "qkv")
    rounding = attention_rounding(params, scheme)
    if rounding is not None and present is not None:  # what is absent must not stretch a measured scale
        query, key, value = (jnp.where(present[..., None, None], each, 0) for each in (query, key, value))
    if slot is None:
        visible = bias
        if present is not None:
            absent = jnp.where(present, 0.0, -jnp.inf)[:, None, None, :]
            visible = absent if bias is None else bias + absent
        attended = attend(query, key, value, visible, register, rounding=rounding)
    else:
        attended = attend_slot(query, key, value, slot, register, rounding)
    (update,) = apply(attended.mixed, ("out",), "attention", 2, "out")
    if spec.layer_scale:
        update = update * params["layer_scale1"].astype(update.dtype)
    middle = hidden + update

    normed_middle = layer_norm(middle, params["norm2"], spec.norm_eps)
    rounded = isinstance(params["mlp"]["fc2"]["kernel"], QuantizedTensor)
    activate = (INTEGER_ACTIVATIONS if rounded else ACTIVATIONS)[spec.activation]
    if spec.gated_mlp:
        gate, up = apply(normed_middle, ("gate", "fc1"), "mlp", 1, "fc1")
        features = activate(gate) * up
    else:
        (up,) = apply(normed_middle, ("fc1",), "mlp", 1, "fc1")
        features = activate(up)
    if "fc2_multiplier" in params:  # a change of units that a method left, its inverse in fc2's kernel
        features = features * params["fc2_multiplier"].astype(features.dtype)
    (update,) = apply(features, ("fc2",), "mlp", 1, "fc2")
    if spec.layer_scale:
        update = update * params["layer_scale2"].astype(update.dtype)
    output = middle + update
    if present is not None:
        output = jnp.where(present[..., None], output, 0)
    trace = BlockTrace(
        hidden, normed, query, key, value, attended.weights, attended.register_weights,
        attended.mixed, normed_middle, features, present,
    )  # fmt: skip
    return output, trace


def segment_params(blocks: Params, first: int, last: int, scheme: Scheme | None) -> Params:
    """The parameters of blocks first..last-1, which are quantised alike. Where rules leave a layer in float in some blocks
    only, those kernels stand packed beside the integer ones, as `float_kernel`."""
    params = jax.tree.map(lambda leaf: leaf[first:last], blocks)
    if scheme is None or not scheme.rules:
        return params
    for site, layers in SITE_LAYERS.items():
        for group, name in layers:
            if "float_kernel" in params[group].get(name, ()):
                in_float = [not scheme.at(site, block).quantized for block in range(last)]
                layer = {key: leaf for key, leaf in params[group][name].items() if key != "float_kernel"}
                if in_float[first]:
                    packed = blocks[group][name]["float_kernel"]
                    layer["kernel"] = packed[sum(in_float[:first]) : sum(in_float)]
                params[group][name] = layer
    return params


def run_blocks(
    blocks: Params,
    hidden: Float[Array, "B N D"],
    spec: BlockSpec,
    *,
    start: int | Int[Array, ""] = 0,
    stop: int | None = None,
    plan: RegisterPlan | None = None,
    registers: BlockRegister | None = None,
    scheme: Scheme | None = None,
    present: Bool[Array, "B N"] | None = None,
    bias: Float[Array, "#B #H #N N"] | None = None,
    slot: int | None = None,
    leading: tuple[int, int] = (0, 0),
    collect: Collectors | None = None,
    unroll: bool = False,
) -> BlocksOutput:
    """Runs blocks start..stop-1 on the hidden state that enters block `start`.

    `start` may be traced: then earlier blocks are stepped over and what they would collect is zero. `present` marks tokens
    that are still there (a plan's deletion takes more). `registers`: rows that every block sees, in place of a plan. `bias` is
    added to all attention logits (a causal mask). `slot`: serving form, see `attend_slot`. `leading`: class tokens and trained
    registers in front, which are never deleted. `unroll` writes the blocks out one by one (longer compilation, and a
    compiler's cost estimate that counts every block)."""
    stop = spec.num_blocks if stop is None else stop
    first = start if isinstance(start, int) else 0
    collectors = dict(collect or {})
    if plan is not None and present is None:
        present = jnp.ones(hidden.shape[:2], bool)

    Layer = tuple[Params, BlockRegister | None, Int[Array, ""]]
    State = tuple[Float[Array, "B N D"], Bool[Array, "B N"] | None]

    def run(state: State, layer: Layer, scheme: Scheme | None) -> tuple[State, dict[str, Any]]:
        (hidden, present), (params, register, index) = state, layer
        if plan is not None:
            assert present is not None
            there = present
            present = jax.lax.cond(
                index == plan.delete_block,
                lambda: there & ~mark_largest(hidden, plan.delete_count, sum(leading)),
                lambda: there,
            )
            hidden = jnp.where(present[..., None], hidden, 0)
        output, trace = encoder_block(
            params, hidden, spec,
            register=register, slot=slot, bias=bias, present=present, scheme=scheme, leading=leading,
        )  # fmt: skip
        return (output, present), {name: function(trace) for name, function in collectors.items()}

    def step(scheme: Scheme | None, state: State, layer: Layer) -> tuple[State, dict[str, Any]]:
        if isinstance(start, int):
            return run(state, layer, scheme)
        own = functools.partial(run, scheme=scheme)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(own, state, layer)[1])
        return jax.lax.cond(layer[2] >= start, own, lambda state, _: (state, nothing), state, layer)

    others = (registers if plan is None else plan.per_block(), jnp.arange(spec.num_blocks, dtype=jnp.int32))
    state: State = (hidden, present)
    pieces = []
    for begin, end, own in [(first, stop, None)] if scheme is None else scheme.segments(first, stop):
        rows = jax.tree.map(lambda leaf, begin=begin, end=end: leaf[begin:end], others)
        layers = (segment_params(blocks, begin, end, scheme), *rows)
        if unroll:
            for number in range(end - begin):
                state, row = step(own, state, jax.tree.map(lambda leaf, number=number: leaf[number], layers))
                pieces.append(jax.tree.map(lambda leaf: leaf[None], row))
        else:
            state, piece = jax.lax.scan(functools.partial(step, own), state, layers)
            pieces.append(piece)
    collected = pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pieces)
    return BlocksOutput(*state, collected)
