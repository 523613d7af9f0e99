"""The register plan: which cached rows attention sees, in which blocks, how many copies, and which tokens are deleted.

Paper, section 4: step 3 (cache), 4 (prefix) and 5 (delete). Prefix-only, delete-only and "do nothing" are plans.
"""

from __future__ import annotations

import dataclasses
import typing

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.struct import Struct


@typing.no_type_check  # JAX rebuilds pytrees with whatever leaves a transformation has
@struct.dataclass
class BlockRegister(Struct):
    """What one block sees of a plan: R rows a head and the logits' offset (log of the copies, -inf hides the row)."""

    key: Float[Array, "*L R H K"]
    value: Float[Array, "*L R H K"]
    logit_bias: Float[Array, "*L R #H"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The block numbers of a plan as plain integers, for programs that are built around them (serving form)."""

    start: int
    stop: int
    delete_block: int
    delete_count: int

    @property
    def begins(self) -> list[int]:
        """The blocks from which registers are seen, and where tokens leave; of a plan that does nothing there are none."""
        return [self.start] * (self.stop > self.start) + [self.delete_block] * (self.delete_count > 0)


@typing.no_type_check  # JAX rebuilds pytrees with whatever leaves a transformation has
@struct.dataclass
class RegisterPlan(Struct):
    """R cached registers a block and a deletion; everything is an array, so that a search never recompiles.

    Rows are seen in blocks start <= block < stop, with `copies` (tau in the paper, any positive real; one number, or one
    a block, a block and head, or a block, head and register). At the input of `delete_block` the `delete_count` tokens of
    largest l-inf norm leave, never a class token or a trained register. `start == stop` hides the registers,
    `delete_count == 0` deletes nothing."""

    key: Float[Array, "L R H K"]
    value: Float[Array, "L R H K"]
    copies: Float[Array, "..."]
    start: Int[Array, ""]
    stop: Int[Array, ""]
    delete_block: Int[Array, ""]
    delete_count: Int[Array, ""]

    @property
    def num_blocks(self) -> int:
        """L."""
        return self.key.shape[0]

    def rows(self) -> BlockRegister:
        """The rows with axis L and their logit offsets, in every block: tau equal rows weigh as much as one row whose logit gains
        log(tau). Offsets that all heads share stand once."""
        num_blocks, num_registers, num_heads, _ = self.key.shape
        copies = self.copies.reshape(self.copies.shape + (1,) * (3 - self.copies.ndim))  # [], [L], [L, H] or [L, H, R]
        offset = jnp.swapaxes(jnp.log(copies).astype(jnp.float32), 1, 2)
        heads = 1 if self.copies.ndim < 2 else num_heads
        return BlockRegister(self.key, self.value, jnp.broadcast_to(offset, (num_blocks, num_registers, heads)))

    def per_block(self) -> BlockRegister:
        """The same, hidden (an offset of -inf) in blocks outside start..stop-1."""
        rows, block = self.rows(), jnp.arange(self.num_blocks, dtype=jnp.int32)
        seen = (self.start <= block) & (block < self.stop)
        return rows.replace(logit_bias=jnp.where(seen[:, None, None], rows.logit_bias, -jnp.inf))

    def schedule(self) -> Schedule:
        """The block numbers as integers. Raises if the plan is traced: a serving program needs to know them."""
        start, stop, delete_block, delete_count = (
            int(number) for number in (self.start, self.stop, self.delete_block, self.delete_count)
        )
        return Schedule(start, max(start, stop), delete_block, delete_count)

    def prefix_only(self) -> RegisterPlan:
        """The same registers, nothing deleted."""
        return self.replace(delete_count=jnp.zeros_like(self.delete_count))

    def delete_only(self) -> RegisterPlan:
        """The same deletion, no register seen."""
        return self.replace(stop=self.start)

    @property
    def has_registers(self) -> bool:
        """Whether any block sees a register."""
        return int(self.stop) > int(self.start)


def make_plan(
    key: Float[Array, "L R H K"],
    value: Float[Array, "L R H K"],
    *,
    copies: Float[Array, "..."] | float = 1.0,
    start: int = 0,
    stop: int | None = None,
    delete_block: int = 0,
    delete_count: int = 0,
    num_patches: int | None = None,
) -> RegisterPlan:
    """Builds a plan from plain numbers; `stop=None` means to the last block (paper, step 4).

    `num_patches`, where given, bounds `delete_count` (one patch must remain). Raises UserError, naming every number that is
    out of range."""
    num_blocks, num_registers, num_heads, _ = key.shape
    stop = num_blocks if stop is None else stop
    faults = []
    if not 0 <= start <= num_blocks:
        faults.append(f"start must be a block 0..{num_blocks}, got {start}")
    if not start <= stop <= num_blocks:
        faults.append(f"stop must be {start}..{num_blocks}, got {stop}")
    if not 0 <= delete_block < num_blocks:
        faults.append(f"delete_block must be 0..{num_blocks - 1}, got {delete_block}")
    if delete_count < 0 or (num_patches is not None and delete_count >= num_patches):
        faults.append(f"delete_count must be 0..{'' if num_patches is None else num_patches - 1}, got {delete_count}")
    copies = jnp.asarray(copies, jnp.float32)
    shape = (num_blocks, num_heads, num_registers)[: copies.ndim]
    if copies.shape != shape or not bool(jnp.all(copies > 0)) or not bool(jnp.all(jnp.isfinite(copies))):
        faults.append("copies must be positive and finite: one number, or shape [L], [L, H] or [L, H, R]")
    if not (bool(jnp.all(jnp.isfinite(key))) and bool(jnp.all(jnp.isfinite(value)))):
        faults.append("keys and values must be finite")
    if faults:
        raise UserError("register plan: " + "; ".join(faults))
    numbers = (jnp.asarray(number, jnp.int32) for number in (start, stop, delete_block, delete_count))
    return RegisterPlan(jnp.asarray(key), jnp.asarray(value), copies, *numbers)


def empty_plan(num_blocks: int, num_heads: int, head_dim: int, num_registers: int = 1) -> RegisterPlan:
    """The plan that does nothing."""
    rows = jnp.zeros((num_blocks, num_registers, num_heads, head_dim), jnp.float32)
    return make_plan(rows, rows, stop=0)
