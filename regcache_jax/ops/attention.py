"""Attention that also sees cached registers: the row's share is added to the sums, nothing is concatenated.

softmax([logits, register logits]) @ [values, register value] is computed as two sums over one maximum. A register whose
logit is -inf adds exactly 0.0, so a hidden register leaves every bit as it was. `attend_reference` is the plain
way, with rows really joined to keys and values.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regcache_jax.core.plan import BlockRegister
from regcache_jax.ops.half_octaves import logarithmic_matmul
from regcache_jax.ops.integers import (
    fake_quantize,
    largest_integer,
    quantized_matmul,
    shared_scale,
)


class Rounding(NamedTuple):
    """How attention's own products are integer: which (`qk`, `pv`), of how many bits, the calibrated scale of query, key and
    value (a name that is absent: measured as it passes), the scale of softmax's lower range where it has two, the mapped axis
    over whose devices a scale measured for a whole array is shared (None: none), and whether softmax is rounded to half octaves."""

    products: tuple[str, ...]
    bits: int
    scales: dict[str, Float[Array, "1 1 1 1"]]
    per_token: bool
    low: Float[Array, ""] | None
    shared_over: str | None = None
    half_octaves: bool = False

    def scale(self, site: str, array: Float[Array, "B H P Q"]) -> Float[Array, "1 1 1 1"] | None:
        """The scale of `query`, `key` or `value`; None: measured where the array is rounded."""
        if self.shared_over is not None:
            return shared_scale(array, self.bits, self.shared_over)
        return self.scales.get(site)


class Attended(NamedTuple):
    """What attention gives: mixed values, and who was attended to (tokens, then registers; None without)."""

    mixed: Float[Array, "B T H K"]
    weights: Float[Array, "B H T S"]
    register_weights: Float[Array, "B H T R"] | None


def attend(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    bias: Float[Array, "#B #H #T S"] | None = None,
    register: BlockRegister | None = None,
    count: Float[Array, "#H S"] | None = None,
    rounding: Rounding | None = None,
) -> Attended:
    """Scaled dot-product attention in float32 over tokens and, where given, registers. `bias` is added to the tokens' logits;
    `count` says how often each token is seen (a logit bias of log(count), applied after the exponential). `rounding` makes the
    products of tokens integer; the registers' share stays in float."""
    query32 = query.astype(jnp.float32) * query.shape[-1] ** -0.5
    if rounding is not None and "qk" in rounding.products:
        logits = integer_logits(query, key, rounding)
    else:
        logits = jnp.einsum("bthk,bshk->bhts", query32.astype(key.dtype), key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    peak = jnp.max(logits, axis=-1, keepdims=True)
    if register is not None:
        register_key = register.key.astype(jnp.float32)
        register_logits = jnp.einsum("bthk,rhk->bhtr", query32, register_key)
        register_logits = register_logits + register.logit_bias.T[:, None, :]
        peak = jnp.maximum(peak, jnp.max(register_logits, axis=-1, keepdims=True))
    peak = jax.lax.stop_gradient(peak)
    terms = jnp.exp(logits - peak)
    if count is None:
        total = jnp.sum(terms, axis=-1, keepdims=True)
    else:
        total = jnp.sum(terms * count[:, None, :], axis=-1, keepdims=True)
        value = (value.astype(jnp.float32) * count.T[:, :, None]).astype(value.dtype)
    register_terms = None
    if register is not None:
        register_terms = jnp.exp(register_logits - peak)
        total = total + jnp.sum(register_terms, axis=-1, keepdims=True)
    inverse = 1.0 / total
    if rounding is not None and "pv" in rounding.products:
        highest = jax.lax.stop_gradient(
            jnp.max(logits, axis=-1, keepdims=True)
        )  # tokens fill the integers, whatever registers take
        share = jnp.exp(highest - peak) * inverse
        mixed = integer_mix(jnp.exp(logits - highest), value, rounding) * jnp.swapaxes(share, 1, 2)
    else:  # divided before the product, not after: the terms then stay in float32 on a TPU, which packs them dearly
        shares = (terms * inverse).astype(value.dtype)
        mixed = jnp.einsum("bhts,bshk->bthk", shares, value, preferred_element_type=jnp.float32)
    register_weights = None
    if register_terms is not None:
        assert register is not None
        register_weights = register_terms * inverse
        mixed = mixed + jnp.einsum("bhtr,rhk->bthk", register_weights, register.value.astype(jnp.float32))
    weights = terms * inverse if count is None else terms * count[:, None, :] * inverse
    return Attended(mixed.astype(query.dtype), weights, register_weights)


def integer_logits(
    query: Float[Array, "B T H K"], key: Float[Array, "B S H K"], rounding: Rounding
) -> Float[Array, "B H T S"]:
    """Scaled logits from integer queries and keys."""
    rows, columns = jnp.swapaxes(query, 1, 2), jnp.transpose(key, (0, 2, 3, 1))
    scales = rounding.scale("query", rows), rounding.scale("key", columns)
    product = quantized_matmul(rows, columns, *scales, rounding.bits, rounding.per_token)
    return product * query.shape[-1] ** -0.5


def integer_mix(
    terms: Float[Array, "B H T S"], value: Float[Array, "B S H K"], rounding: Rounding
) -> Float[Array, "B T H K"]:
    """Values weighted by `terms` between 0 and 1 (softmax before its division, so that the largest is 1), both as integers.

    One range: all integers for 0..1, by a zero point in the middle. Two (PTQ4ViT): terms below the end of the lower
    range in small steps, the others in steps of the whole; each its own integer product. Half octaves (RepQ-ViT): powers of
    the square root of two, even and odd ones each their own integer product."""
    columns, largest = jnp.swapaxes(value, 1, 2), float(largest_integer(rounding.bits))
    scale = rounding.scale("value", columns)

    def product(rows: Float[Array, "B H T S"], step: Float[Array, ""]) -> Float[Array, "B H T K"]:
        return quantized_matmul(rows, columns, step.reshape(1, 1, 1, 1), scale, rounding.bits, rounding.per_token)

    if rounding.half_octaves:
        mixed = logarithmic_matmul(terms, columns, scale, rounding.bits, rounding.per_token)
    elif rounding.low is None:
        axes = (2,) if rounding.per_token else (0, 1, 2, 3)
        rounded = fake_quantize(columns.astype(jnp.float32), rounding.bits, axes, scale)
        mixed = product(terms - 0.5, jnp.float32(0.5 / largest)) + 0.5 * jnp.sum(rounded, axis=2, keepdims=True)
    else:
        is_low = terms < rounding.low * largest
        high = product(jnp.where(is_low, 0.0, terms), jnp.float32(1 / largest))
        mixed = product(jnp.where(is_low, terms, 0.0), rounding.low) + high
    return jnp.swapaxes(mixed, 1, 2)


def attend_slot(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    slot: int,
    register: BlockRegister | None,
    rounding: Rounding | None = None,
    present: Bool[Array, "B N"] | None = None,
) -> Attended:
    """Serving form: rows `slot`, `slot + 1`, ... repeat the last token, and the first R of them carry the registers. Where pictures have
    tokens of different number, `present` says which rows are tokens, and what the others hold is of no matter.

    Rows are selected, not written or joined, and counted (a token once, a register `copies` times, a repeated token never)
    after the exponential, not biased before it: a TPU then runs projection, product and softmax as one fusion. A repeated
    token cannot lift the largest logit. Integer products hide the padding instead, and keep registers beside it in float."""
    if rounding is not None:
        return attend(query, key, value, row_bias(key.shape[1], slot, None, present), register, rounding=rounding)
    key, value = select_registers(key, value, slot, register)
    if present is not None:
        return attend(query, key, value, row_bias(key.shape[1], slot, register, present))
    return attend(query, key, value, count=row_counts(key.shape[1], slot, register))


def select_registers(
    key: Float[Array, "B N H K"], value: Float[Array, "B N H K"], slot: int, register: BlockRegister | None
) -> tuple[Float[Array, "B N H K"], Float[Array, "B N H K"]]:
    """Keys and values with the registers in the rows from `slot` on."""
    if register is None:
        return key, value
    row = jnp.arange(key.shape[1], dtype=jnp.int32)
    for index in range(register.key.shape[0]):
        here = (row == slot + index)[:, None, None]
        key = jnp.where(here, register.key[index].astype(key.dtype), key)
        value = jnp.where(here, register.value[index].astype(value.dtype), value)
    return key, value


def row_counts(num_rows: int, slot: int, register: BlockRegister | None) -> Float[Array, "#H N"]:
    """How often each row is seen: a token once, a register `copies` times, a repeated token never."""
    row = jnp.arange(num_rows, dtype=jnp.int32)
    count = (row < slot).astype(jnp.float32)[None]
    if register is not None:
        for index in range(register.key.shape[0]):
            count = jnp.where(row == slot + index, jnp.exp(register.logit_bias[index])[:, None], count)
    return count


def row_bias(
    num_rows: int, slot: int, register: BlockRegister | None, present: Bool[Array, "B N"] | None = None
) -> Float[Array, "#B #H 1 N"] | None:
    """What is added to the logits of each row: nothing to a token's, log copies to a register's, and -inf to padding's, which may hold
    anything. None: all are tokens."""
    if slot == num_rows and present is None:
        return None
    row = jnp.arange(num_rows, dtype=jnp.int32)
    is_token = (row < slot)[None] if present is None else present
    bias = jnp.where(is_token, 0.0, -jnp.inf)[:, None]
    if register is not None:
        for index in range(register.key.shape[0]):
            bias = jnp.where(row == slot + index, register.logit_bias[index][:, None], bias)
    return bias[:, :, None]


def attend_reference(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    register: BlockRegister,
    copies: int,
) -> Float[Array, "B T H K"]:
    """The paper's words (step 4): `copies` equal rows joined to keys and values, then an ordinary softmax."""
    rows = jnp.repeat(register.key, copies, axis=0), jnp.repeat(register.value, copies, axis=0)
    batch = key.shape[0]
    keys = jnp.concatenate([key, jnp.broadcast_to(rows[0], (batch, *rows[0].shape))], axis=1)
    values = jnp.concatenate([value, jnp.broadcast_to(rows[1], (batch, *rows[1].shape))], axis=1)
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", query * query.shape[-1] ** -0.5, keys), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights, values)
