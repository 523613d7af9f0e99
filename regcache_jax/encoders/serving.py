"""The serving form of the block stack: static segments, deletion that shrinks N, and two ways to hold a register.

A plan whose block numbers are known is run as segments between them. `kv`: cached rows beside keys and values; with `tile`
the tokens are padded to a multiple of it and the rows sit in the padding (what a TPU wants, see docs/performance.md).
`token`: the register is a hidden state, joined to the residual stream at `start`, attending only to itself, and sliced
off at `stop`.
"""

from __future__ import annotations

import functools
import itertools
import typing
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.plan import BlockRegister, Schedule
from regcache_jax.core.sites import Block
from regcache_jax.core.spec import BlockSpec, Protected
from regcache_jax.core.struct import Struct
from regcache_jax.encoders.blocks import after_attention, alike, encoder_block, rows_there, run_blocks
from regcache_jax.encoders.forms import ATTENTION
from regcache_jax.encoders.norms import apply_norm, norm_mixed
from regcache_jax.encoders.rounding import Run, dense
from regcache_jax.ops.delete import delete_largest
from regcache_jax.ops.rotary import Turn


@typing.no_type_check  # JAX rebuilds pytrees with whatever leaves a transformation has
@struct.dataclass
class TokenRegister(Struct):
    """The token form of a register: R hidden states that enter the residual stream, each weighing as `copies` rows."""

    hidden: Float[Array, "R D"]
    copies: Float[Array, ""]


class Served(NamedTuple):
    """What the last block gives: the rows of the residual stream, and the positions of the tokens that are left among
    those that came in (None: all). Rows from `num_tokens` on are padding and repeat the last token."""

    rows: Float[Array, "B P D"]
    kept: Int[Array, "B M"] | None
    num_tokens: int

    @property
    def hidden(self) -> Float[Array, "B M D"]:
        """The tokens without the padding."""
        return self.rows[:, : self.num_tokens]


def segments(schedule: Schedule, num_blocks: int) -> list[tuple[int, int]]:
    """Block ranges between which nothing changes: neither who sees a register nor how many tokens there are."""
    cuts = {0, num_blocks, *schedule.begins}
    if schedule.stop > schedule.start:
        cuts.add(schedule.stop)
    bounds = sorted(cuts)
    return list(itertools.pairwise(bounds))


def num_rows(num_tokens: int, spare: int, tile: int | None) -> int:
    """Rows that hold the tokens and `spare` more, a multiple of `tile`."""
    return num_tokens if tile is None else -(-(num_tokens + spare) // tile) * tile


def repeat_last(hidden: Float[Array, "B N D"], rows: int, padded: bool = False) -> Float[Array, "B P D"]:
    """Pads to `rows` rows by repeating the last one: a repetition goes through the blocks as its token does, so no scale that
    is measured and no largest logit knows that it is there. A padded stack has rows of zeros."""
    more = ((0, 0), (0, rows - hidden.shape[1]), (0, 0))
    return jnp.pad(hidden, more) if padded else jnp.pad(hidden, more, mode="edge")


def serve_blocks(
    blocks: Block,
    hidden: Float[Array, "B P D"],
    run: Run,
    schedule: Schedule,
    registers: BlockRegister | None,
    *,
    tile: int | None = None,
    num_tokens: int | None = None,
    unroll: bool = False,
) -> Served:
    """Runs all blocks, those between `start` and `stop` of `schedule` with `registers` (a plan's `rows()`).

    `tile=None`: as many rows as tokens, registers beside keys and values. `tile=8`: padded rows, registers in the padding.
    `num_tokens`, where given, says that later rows of `hidden` are padding already (repetitions of the last token). A padded stack has
    rows of zeros among its tokens, and masks them."""
    tokens, kept, padded = num_tokens or hidden.shape[1], None, run.spec.padded
    whole = tokens
    for first, last in segments(schedule, run.spec.num_blocks):
        seen = registers if schedule.start <= first < schedule.stop else None
        deletes = schedule.delete_count if first == schedule.delete_block else 0
        spare = run.form.rows_for(seen, tokens - deletes, run.spec.num_heads)
        rows = num_rows(tokens - deletes, spare, tile)
        if deletes:
            hidden, kept = delete_largest(
                hidden, deletes, sum(run.protected), num_tokens=tokens, rows=rows, padded=padded
            )
            tokens -= deletes
        elif rows != hidden.shape[1]:
            hidden = hidden[:, :rows] if rows < hidden.shape[1] else repeat_last(hidden, rows, padded)
        turn, slot = run.turn(whole, kept, more=rows - tokens), None if rows == tokens else tokens
        alone = run.form.class_alone and last == run.spec.num_blocks
        for begin, end, part, own in alike(blocks, run, first, last - 1 if alone else last):
            rows_seen = jax.tree.map(lambda leaf, begin=begin, end=end: leaf[begin:end], seen)
            hidden = run_segment(part, rows_seen, hidden, own, slot=slot, turn=turn, unroll=unroll)
        if alone:
            block, register = jax.tree.map(lambda leaf, number=last - 1: leaf[number], (blocks, seen))
            hidden, tokens = formed_block(block, hidden, run, tokens, register, class_alone=True), 1
    return Served(hidden, kept, tokens)


def formed_block(
    block: Block,
    hidden: Float[Array, "B P D"],
    run: Run,
    slot: int,
    register: BlockRegister | None,
    present: Bool[Array, "B P"] | None = None,
    *,
    class_alone: bool = False,
) -> Float[Array, "B T D"]:
    """A block in the form of `run`; `encoder_block` with `slot` is the plain one. `class_alone`: only the class token (T = 1) asks, and
    goes on; it is chosen by a masked sum, as a slice of one row is dear on a TPU."""
    assert run.spec.rotary is None and run.spec.qk_norm == "none"  # see `forms.form_for`
    layers, grid = block.attention, block.grids.of("qkv")
    project = functools.partial(dense, site="qkv", run=run, grid=grid, dtype=jnp.float32)
    norm = functools.partial(apply_norm, norm=block.norm1, spec=run.spec, two_passes=run.form.two_passes)
    normed = norm(hidden)
    if class_alone:
        key, value = project(normed, (layers.key, layers.value))
        row = jnp.arange(hidden.shape[1], dtype=jnp.int32)[:, None]
        hidden = jnp.sum(jnp.where(row == 0, hidden, 0), axis=1, keepdims=True)
        (query,) = project(norm(hidden), (layers.query,))
    else:
        query, key, value = project(normed, (layers.query, layers.key, layers.value))
    mixed = ATTENTION[run.form.attention](query, key, value, slot, register, hidden.dtype, present)
    mixed = norm_mixed(mixed.astype(hidden.dtype), layers.norm, run.spec)
    return after_attention(block, hidden, mixed, run)[0]


def run_segment(
    blocks: Block,
    registers: BlockRegister | None,
    hidden: Float[Array, "B P D"],
    run: Run,
    *,
    slot: int | None = None,
    bias: Float[Array, "#B #H #P P"] | None = None,
    turn: Turn | None = None,
    unroll: bool = False,
) -> Float[Array, "B P D"]:
    """Runs all blocks of a stack that are quantised alike, each seeing its own `registers` (None: nothing).

    `slot`: tokens end there, see `attend_slot`. `bias` is added to all attention logits, `turn` is that of rotary positions. `unroll`
    writes the blocks out one by one (longer compilation, and a compiler's cost estimate that counts every block). Rows of a padded stack
    that are zeros are no tokens, and are zeros in what it gives."""
    present = rows_there(hidden, run.spec)

    def step(
        hidden: Float[Array, "B P D"], layer: tuple[Block, BlockRegister | None]
    ) -> tuple[Float[Array, "B P D"], None]:
        block, register = layer
        if run.form.attention != "slot":
            return formed_block(block, hidden, run, slot or hidden.shape[1], register, present), None
        return encoder_block(block, hidden, run, register=register, slot=slot, bias=bias, present=present, turn=turn)[
            0
        ], None

    layers = (blocks, registers)
    if unroll:
        for number in range(blocks.num_blocks):
            hidden, _ = step(hidden, jax.tree.map(lambda leaf, number=number: leaf[number], layers))
    else:
        hidden, _ = jax.lax.scan(step, hidden, layers)
    return hidden if present is None else jnp.where(present[..., None], hidden, 0)


def isolated_bias(num_tokens: int, copies: Float[Array, ""], num_registers: int) -> Float[Array, "1 1 S S"]:
    """Attention bias of the token form: tokens see tokens and (with log copies) registers; a register sees itself."""
    row = jnp.arange(num_tokens + num_registers, dtype=jnp.int32)
    is_register = row >= num_tokens
    from_token = jnp.where(is_register, jnp.log(copies), 0.0)
    from_register = jnp.where(row[:, None] == row[None, :], 0.0, -jnp.inf)
    return jnp.where(is_register[:, None], from_register, from_token[None, :])[None, None]


def serve_tokens(
    blocks: Block, hidden: Float[Array, "B N D"], run: Run, schedule: Schedule, register: TokenRegister
) -> Served:
    """The token form: registers concatenated to the residual stream at block `start` and sliced off at block `stop`. They have no
    place in the picture, and rotary positions do not turn them."""
    num_registers = register.hidden.shape[0]
    resting, kept = register.hidden, None
    whole = hidden.shape[1]
    for first, last in segments(schedule, run.spec.num_blocks):
        if schedule.delete_count and first == schedule.delete_block:
            hidden, kept = delete_largest(hidden, schedule.delete_count, sum(run.protected), padded=run.spec.padded)
        num_tokens, bias, turn = hidden.shape[1], None, run.turn(whole, kept)
        if schedule.start <= first < schedule.stop:
            joined = jnp.broadcast_to(resting.astype(hidden.dtype), (hidden.shape[0], num_registers, run.spec.width))
            hidden = jnp.concatenate([hidden, joined], axis=1)
            bias = isolated_bias(num_tokens, register.copies, num_registers)
            position = jnp.arange(whole, dtype=jnp.int32)[None] if kept is None else kept
            turn = run.turn(whole, jnp.pad(position, ((0, 0), (0, num_registers)), constant_values=-1))
        for _, _, part, own in alike(blocks, run, first, last):
            hidden = run_segment(part, None, hidden, own, bias=bias, turn=turn)
        if bias is not None:
            hidden, resting = hidden[:, :num_tokens], hidden[:, num_tokens:]
    return Served(hidden, kept, hidden.shape[1])


def token_rows(
    blocks: Block, register: TokenRegister, spec: BlockSpec, schedule: Schedule
) -> tuple[Float[Array, "L R H K"], Float[Array, "L R H K"]]:
    """The keys and values that a token register has in every block: what makes the `kv` form of the same register.

    Rows of blocks before `schedule.start` are zero (they are never seen)."""
    num_registers = register.hidden.shape[0]
    bias = isolated_bias(0, register.copies, num_registers)
    collected = run_blocks(
        blocks, register.hidden[None], Run(spec, protected=Protected(0, num_registers)), start=schedule.start, bias=bias,
        collect={"key": lambda trace: trace.key[0], "value": lambda trace: trace.value[0]},
    ).collected  # fmt: skip
    pad = ((schedule.start, 0), (0, 0), (0, 0), (0, 0))
    return jnp.pad(collected["key"], pad), jnp.pad(collected["value"], pad)
