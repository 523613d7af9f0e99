"""The functional block stack: state in, state out, float or integer kernels, with or without registers.

`run_blocks` runs any range of the stacked blocks from any hidden state with one `lax.scan`. This is the *search form*: a plan's
block numbers, copies and counts are arrays, deleted tokens are masked, and every plan runs in the same program. The
*serving form* (static segments, deletion that shrinks N) stands in `serving`; the two share `encoder_block`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.plan import BlockRegister, RegisterPlan
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Dense, QuantizedTensor
from regcache_jax.core.spec import Activation, BlockSpec
from regcache_jax.encoders.forms import Form
from regcache_jax.encoders.norms import apply_norm, norm_heads, norm_mixed
from regcache_jax.encoders.rounding import Run, attention_rounding, dense
from regcache_jax.ops.attention import attend, attend_slot
from regcache_jax.ops.delete import mark_largest
from regcache_jax.ops.gelu import SLOPES, by_logistic, gelu_for_integers
from regcache_jax.ops.rotary import Turn, rotate

ACTIVATIONS: dict[Activation, Callable[[Float[Array, "..."]], Float[Array, "..."]]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}

INTEGER_ACTIVATIONS: dict[Activation, Callable[[Float[Array, "..."]], Float[Array, "..."]]] = {
    **ACTIVATIONS,
    "gelu": gelu_for_integers,
}
"""What runs in front of an integer second MLP layer."""


def activation(spec: BlockSpec, rounded: bool, form: Form) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """What runs in front of the second MLP layer, `rounded` or not, in a form."""
    if form.by_logistic and spec.activation in SLOPES:
        return functools.partial(by_logistic, activation=spec.activation)
    return (INTEGER_ACTIVATIONS if rounded else ACTIVATIONS)[spec.activation]


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


def rows_there(hidden: Float[Array, "B N D"], spec: BlockSpec) -> Bool[Array, "B N"] | None:
    """Which rows are tokens, of a padded stack, whose other rows are zeros; None: all are."""
    return jnp.any(hidden != 0, axis=-1) if spec.padded else None


def encoder_block(
    block: Block,
    hidden: Float[Array, "B N D"],
    run: Run,
    *,
    register: BlockRegister | None = None,
    slot: int | None = None,
    bias: Float[Array, "#B #H #N N"] | None = None,
    present: Bool[Array, "B N"] | None = None,
    turn: Turn | None = None,
) -> tuple[Float[Array, "B N D"], BlockTrace]:
    """One pre-norm block: attention (with the register's row, if any) and MLP, each added to the residual stream.

    `turn` is that of the tokens where positions are rotary (`Run.turn`); the trace has queries and keys as attention sees them."""
    spec, attention = run.spec, block.attention
    present = rows_there(hidden, spec) if present is None else present
    normed = apply_norm(hidden, block.norm1, spec)
    layers = attention.query, attention.key, attention.value
    query, key, value = dense(normed, layers, "qkv", run, block.grids.of("qkv"), present)
    query, key = norm_heads(query, attention.query_norm, spec), norm_heads(key, attention.key_norm, spec)
    if spec.rotary is not None:
        assert turn is not None
        query, key = (rotate(each, turn, spec.rotary) for each in (query, key))
    rounding = attention_rounding(block.grids, run.scheme)
    if rounding is not None and present is not None:  # what is absent must not stretch a measured scale
        query, key, value = (jnp.where(present[..., None, None], each, 0) for each in (query, key, value))
    if slot is None:
        visible = bias
        if present is not None:
            absent = jnp.where(present, 0.0, -jnp.inf)[:, None, None, :]
            visible = absent if bias is None else bias + absent
        attended = attend(query, key, value, visible, register, rounding=rounding)
    else:
        attended = attend_slot(query, key, value, slot, register, rounding, present)
    mixed = norm_mixed(attended.mixed, attention.norm, spec)
    output, normed_middle, features = after_attention(block, hidden, mixed, run, present)
    if present is not None:
        output = jnp.where(present[..., None], output, 0)
    trace = BlockTrace(
        hidden, normed, query, key, value, attended.weights, attended.register_weights,
        mixed, normed_middle, features, present,
    )  # fmt: skip
    return output, trace


def after_attention(
    block: Block,
    hidden: Float[Array, "B N D"],
    mixed: Float[Array, "B N H K"],
    run: Run,
    present: Bool[Array, "B N"] | None = None,
) -> tuple[Float[Array, "B N D"], Float[Array, "B N D"], Float[Array, "B N F"]]:
    """The rest of a block behind attention's mixed values (normed where they are): its output, and the inputs of the two MLP layers."""
    spec, mlp = run.spec, block.mlp

    def apply(inputs: Float[Array, "B N ..."], site: str, *layers: Dense) -> list[Float[Array, "B N ..."]]:
        return dense(inputs, layers, site, run, block.grids.of(site), present)

    (update,) = apply(mixed, "out", block.attention.out)
    if block.layer_scale1 is not None:
        update = update * block.layer_scale1.astype(update.dtype)
    middle = hidden + update

    normed_middle = apply_norm(middle, block.norm2, spec, two_passes=run.form.two_passes)
    activate = activation(spec, isinstance(mlp.fc2.kernel, QuantizedTensor), run.form)
    if mlp.gate is not None:
        gate, up = apply(normed_middle, "fc1", mlp.gate, mlp.fc1)
        features = activate(gate) * up
    else:
        (up,) = apply(normed_middle, "fc1", mlp.fc1)
        features = activate(up)
    if mlp.norm is not None:
        features = apply_norm(features, mlp.norm, spec)
    if block.fc2_multiplier is not None:
        features = features * block.fc2_multiplier.astype(features.dtype)
    (update,) = apply(features, "fc2", mlp.fc2)
    if block.layer_scale2 is not None:
        update = update * block.layer_scale2.astype(update.dtype)
    return middle + update, normed_middle, features


def segment(blocks: Block, first: int, last: int, scheme: Scheme | None) -> Block:
    """Blocks first..last-1, which are quantised alike. Where rules leave a layer in float in some blocks only, those kernels
    stand packed beside the integer ones, as `float_kernel`, and are unpacked here."""
    layers = {name: (site, layer) for site in SITES for name, layer in blocks.layers(site).items()}
    packed = {name: layer.float_kernel for name, (_, layer) in layers.items() if layer.float_kernel is not None}
    plain = blocks.with_layers({name: layers[name][1].replace(float_kernel=None) for name in packed})
    part = jax.tree.map(lambda leaf: leaf[first:last], plain)
    if scheme is None or not packed:
        return part
    unpacked = {}
    for name, kernels in packed.items():
        site = layers[name][0]
        in_float = [not scheme.at(site, block).quantized for block in range(last)]
        if in_float[first]:
            kernel = kernels[sum(in_float[:first]) : sum(in_float)]
            unpacked[name] = part.layers(site)[name].replace(kernel=kernel)
    return part.with_layers(unpacked)


def alike(blocks: Block, run: Run, first: int, last: int) -> list[tuple[int, int, Block, Run]]:
    """Ranges of blocks first..last-1 that are quantised alike: begin, end, their parameters, and what they run under."""
    ranges = [(first, last, None)] if run.scheme is None else run.scheme.segments(first, last)
    return [
        (begin, end, segment(blocks, begin, end, run.scheme), dataclasses.replace(run, scheme=own))
        for begin, end, own in ranges
    ]


def run_blocks(
    blocks: Block,
    hidden: Float[Array, "B N D"],
    run: Run,
    *,
    start: int | Int[Array, ""] = 0,
    plan: RegisterPlan | None = None,
    present: Bool[Array, "B N"] | None = None,
    bias: Float[Array, "#B #H #N N"] | None = None,
    collect: Collectors | None = None,
) -> BlocksOutput:
    """Runs the blocks from `start` on, on the hidden state that enters that block.

    `start` may be traced: then earlier blocks are stepped over and what they would collect is zero. `present` marks tokens
    that are still there (a plan's deletion takes more). `bias` is added to all attention logits (a causal mask). Rotary positions are
    those of all tokens of a picture: what is deleted here is masked, and no token moves."""
    num_blocks, turn = run.spec.num_blocks, run.turn(hidden.shape[1])
    collectors = dict(collect or {})
    if plan is not None and present is None:
        present = rows_there(hidden, run.spec)
        present = jnp.ones(hidden.shape[:2], bool) if present is None else present

    Layer = tuple[Block, BlockRegister | None, Int[Array, ""]]
    State = tuple[Float[Array, "B N D"], Bool[Array, "B N"] | None]

    def one(own: Run, state: State, layer: Layer) -> tuple[State, dict[str, Any]]:
        (hidden, present), (block, register, index) = state, layer
        if plan is not None:
            assert present is not None
            there = present
            present = jax.lax.cond(
                index == plan.delete_block,
                lambda: there & ~mark_largest(hidden, plan.delete_count, sum(run.protected), run.spec.padded),
                lambda: there,
            )
            hidden = jnp.where(present[..., None], hidden, 0)
        output, trace = encoder_block(block, hidden, own, register=register, bias=bias, present=present, turn=turn)
        return (output, present), {name: function(trace) for name, function in collectors.items()}

    def step(own: Run, state: State, layer: Layer) -> tuple[State, dict[str, Any]]:
        if isinstance(start, int):
            return one(own, state, layer)
        run_one = functools.partial(one, own)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run_one, state, layer)[1])
        return jax.lax.cond(layer[2] >= start, run_one, lambda state, _: (state, nothing), state, layer)

    others = (None if plan is None else plan.per_block(), jnp.arange(num_blocks, dtype=jnp.int32))
    state: State = (hidden, present)
    pieces = []
    for begin, end, part, own in alike(blocks, run, start if isinstance(start, int) else 0, num_blocks):
        rows = jax.tree.map(lambda leaf, begin=begin, end=end: leaf[begin:end], others)
        state, piece = jax.lax.scan(functools.partial(step, own), state, (part, *rows))
        pieces.append(piece)
    collected = pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pieces)
    return BlocksOutput(*state, collected)
