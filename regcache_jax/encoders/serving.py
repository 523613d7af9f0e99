"""The serving form of the block stack: static segments, deletion that shrinks N, and two ways to hold a register.

A plan whose block numbers are known is run as segments between them. `kv`: cached rows beside keys and values; with `tile`
the tokens are padded to a multiple of it and the rows sit in the padding (what a TPU wants, see docs/performance.md).
`token`: the register is a hidden state, joined to the residual stream at `start`, attending only to itself, and sliced
off at `stop`.
"""

from __future__ import annotations

import itertools
import typing
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from regcache_jax.encoders.blocks import Params, run_blocks
from regcache_jax.encoders.spec import BlockSpec
from regcache_jax.quantization.scheme import Scheme
from regcache_jax.registers.delete import delete_largest
from regcache_jax.registers.plan import RegisterPlan, Schedule


@typing.no_type_check  # JAX rebuilds pytrees with whatever leaves a transformation has
@struct.dataclass
class TokenRegister:
    """The token form of a register: R hidden states that enter the residual stream, each weighing as `copies` rows."""

    hidden: Float[Array, "R D"]
    copies: Float[Array, ""]


class Served(NamedTuple):
    """The tokens that are left after the last block, and their positions among the N that came in (None: all)."""

    hidden: Float[Array, "B M D"]
    kept: Int[Array, "B M"] | None


def segments(schedule: Schedule, num_blocks: int) -> list[tuple[int, int]]:
    """Block ranges between which nothing changes: neither who sees a register nor how many tokens there are."""
    cuts = {0, num_blocks}
    if schedule.stop > schedule.start:
        cuts |= {schedule.start, schedule.stop}
    if schedule.delete_count:
        cuts.add(schedule.delete_block)
    bounds = sorted(cuts)
    return list(itertools.pairwise(bounds))


def pad_tokens(hidden: Float[Array, "B N D"], tile: int, spare: int) -> Float[Array, "B P D"]:
    """Appends rows of zeros until there are at least `spare` of them and the number of rows is a multiple of `tile`."""
    rows = hidden.shape[1] + spare
    return jnp.pad(hidden, ((0, 0), (0, -rows % tile + spare), (0, 0)))


def serve_blocks(
    blocks: Params,
    hidden: Float[Array, "B N D"],
    spec: BlockSpec,
    schedule: Schedule,
    plan: RegisterPlan | None,
    *,
    scheme: Scheme | None = None,
    leading: tuple[int, int] = (0, 0),
    tile: int | None = None,
    unroll: bool = False,
) -> Served:
    """Runs all blocks with the registers of `plan` at the fixed numbers of `schedule` (`plan`'s own numbers are not read).

    `tile=None`: as many rows as tokens, registers beside keys and values. `tile=8`: padded rows, registers in the padding."""
    kept = None
    for first, last in segments(schedule, spec.num_blocks):
        if schedule.delete_count and first == schedule.delete_block:
            hidden, kept = delete_largest(hidden, schedule.delete_count, sum(leading))
        seen = plan is not None and schedule.start <= first < schedule.stop
        rows = None
        if seen:
            bounds = jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32)
            rows = plan.replace(start=bounds[0], stop=bounds[1], delete_count=jnp.zeros_like(plan.delete_count))
        if tile is None:
            hidden = _run_segment(blocks, hidden, spec, first, last, rows, None, scheme, leading, unroll)
        else:
            slot = hidden.shape[1]
            padded = pad_tokens(hidden, tile, plan.key.shape[1] if seen else 0)
            used = None if padded.shape[1] == slot else slot
            padded = _run_segment(blocks, padded, spec, first, last, rows, used, scheme, leading, unroll)
            hidden = padded[:, :slot]
    return Served(hidden, kept)


def _run_segment(
    blocks: Params,
    hidden: Float[Array, "B N D"],
    spec: BlockSpec,
    first: int,
    last: int,
    rows: RegisterPlan | None,
    slot: int | None,
    scheme: Scheme | None,
    leading: tuple[int, int],
    unroll: bool,
) -> Float[Array, "B N D"]:
    """One segment; with padding rows, a scale measured over the whole array must not see them."""
    present = None
    if slot is not None and scheme is not None and scheme.activations == "tensor":
        present = jnp.broadcast_to(jnp.arange(hidden.shape[1], dtype=jnp.int32) < slot, hidden.shape[:2])
    return run_blocks(
        blocks, hidden, spec,
        start=first, stop=last, plan=rows, slot=slot, present=present, scheme=scheme, leading=leading, unroll=unroll,
    ).hidden  # fmt: skip


def isolated_bias(num_tokens: int, copies: Float[Array, ""], num_registers: int) -> Float[Array, "1 1 S S"]:
    """Attention bias of the token form: tokens see tokens and (with log copies) registers; a register sees itself."""
    row = jnp.arange(num_tokens + num_registers, dtype=jnp.int32)
    is_register = row >= num_tokens
    from_token = jnp.where(is_register, jnp.log(copies), 0.0)
    from_register = jnp.where(row[:, None] == row[None, :], 0.0, -jnp.inf)
    return jnp.where(is_register[:, None], from_register, from_token[None, :])[None, None]


def serve_tokens(
    blocks: Params,
    hidden: Float[Array, "B N D"],
    spec: BlockSpec,
    schedule: Schedule,
    register: TokenRegister,
    *,
    scheme: Scheme | None = None,
    leading: tuple[int, int] = (0, 0),
) -> Served:
    """The token form: registers concatenated to the residual stream at block `start` and sliced off at block `stop`."""
    num_registers = register.hidden.shape[0]
    resting, kept = register.hidden, None
    for first, last in segments(schedule, spec.num_blocks):
        if schedule.delete_count and first == schedule.delete_block:
            hidden, kept = delete_largest(hidden, schedule.delete_count, sum(leading))
        num_tokens, bias = hidden.shape[1], None
        if schedule.start <= first < schedule.stop:
            joined = jnp.broadcast_to(resting.astype(hidden.dtype), (hidden.shape[0], num_registers, spec.width))
            hidden = jnp.concatenate([hidden, joined], axis=1)
            bias = isolated_bias(num_tokens, register.copies, num_registers)
        hidden = run_blocks(
            blocks, hidden, spec, start=first, stop=last, bias=bias, scheme=scheme, leading=leading
        ).hidden
        if bias is not None:
            hidden, resting = hidden[:, :num_tokens], hidden[:, num_tokens:]
    return Served(hidden, kept)


def token_rows(
    blocks: Params, register: TokenRegister, spec: BlockSpec, schedule: Schedule
) -> tuple[Float[Array, "L R H K"], Float[Array, "L R H K"]]:
    """The keys and values that a token register has in every block: what makes the `kv` form of the same register.

    Rows of blocks before `schedule.start` are zero (they are never seen)."""
    num_registers = register.hidden.shape[0]
    bias = isolated_bias(0, register.copies, num_registers)
    collected = run_blocks(
        blocks, register.hidden[None], spec, start=schedule.start, bias=bias,
        collect={"key": lambda trace: trace.key[0], "value": lambda trace: trace.value[0]},
    ).collected  # fmt: skip
    pad = ((schedule.start, 0), (0, 0), (0, 0), (0, 0))
    return jnp.pad(collected["key"], pad), jnp.pad(collected["value"], pad)
