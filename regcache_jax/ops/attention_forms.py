"""Attention of the serving form in other products, the same numbers: what a chip's compiler makes most of (docs/performance.md).

`attend_plain` is the reference. The others keep keys and values in float32 until a product reads them: a TPU narrows
for nothing what a product reads, and packs dearly what is written narrow. The compiler would move the narrowing in front of a
barrier on floats, so the barrier holds their bits.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regcache_jax.core.plan import BlockRegister
from regcache_jax.ops.attention import attend_slot, row_bias, select_registers

ON_CHIP = 2**25
"""So many logits in float32, 128 MiB, are all of a TPU's fast memory: more than these are written out, unless queries come in chunks."""
CHUNK = 9 * 2**20
"""Logits of a chunk: 36 MiB, beside which keys, values and what comes next have place too."""


def attend_plain(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    slot: int,
    register: BlockRegister | None,
    dtype: Any,
    present: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B T H K"]:
    """The reference: `attend_slot` of what is narrowed to `dtype` first."""
    return attend_slot(query.astype(dtype), key.astype(dtype), value.astype(dtype), slot, register, None, present).mixed


def attend_kept(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    slot: int,
    register: BlockRegister | None,
    dtype: Any,
    present: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B T H K"]:
    """One head a product, whose inputs are narrowed to `dtype` as it reads them. The first three are float32."""
    key, value, bias = _with_registers(key, value, slot, register, present)
    query = (query * query.shape[-1] ** -0.5).astype(dtype)
    return _mix(query, held(key).astype(dtype), held(value).astype(dtype), bias)


def attend_pairs(
    query: Float[Array, "B T P C"],
    key: Float[Array, "B N P C"],
    value: Float[Array, "B N P C"],
    slot: int,
    register: BlockRegister | None,
    dtype: Any,
    present: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B T P C"]:
    """Heads 2p and 2p + 1 side by side in the C = 2 K channels of pair p: with heads of 64 a product fills a TPU's 128 lanes.

    Each head's query is zero in the other's channels, and each gives its own half of what it mixes."""
    half = query.shape[-1] // 2
    is_even = jnp.arange(2 * half, dtype=jnp.int32) < half
    key, value, bias = _with_registers(key, value, slot, register, present)
    biases = [bias if bias is None or bias.shape[1] == 1 else bias[:, parity::2] for parity in (0, 1)]
    query = query * half**-0.5
    queries = jnp.where(is_even, query, 0.0), jnp.where(is_even, 0.0, query)
    key, value = held(key).astype(dtype), held(value).astype(dtype)
    even, odd = (_mix(held(one).astype(dtype), key, value, own) for one, own in zip(queries, biases, strict=True))
    return jnp.where(is_even, held(even), odd)


def attend_flash(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    slot: int,
    register: BlockRegister | None,
    dtype: Any,
    present: Bool[Array, "B N"] | None = None,
    implementation: Literal["cudnn", "xla"] | None = None,
) -> Float[Array, "B T H K"]:
    """Flash attention by cuDNN; on other platforms, and in float32 (which cuDNN has not), JAX's own, if no `implementation` is asked for.
    Registers are mixed in behind it, by the sum of exponentials that it gives: as rows of the keys their copies would be a bias of the
    logits, with which cuDNN takes more than twice as long."""
    query, key, value = query.astype(dtype), key[:, :slot].astype(dtype), value[:, :slot].astype(dtype)
    mask = None if present is None else present[:, None, None, :slot]
    if implementation is None:
        implementation = "cudnn" if jax.default_backend() == "gpu" and jnp.dtype(dtype).itemsize == 2 else "xla"
    attend = functools.partial(
        jax.nn.dot_product_attention, query, key, value, mask=mask, implementation=implementation
    )
    if register is None:
        return attend()
    mixed, log_sum = attend(return_residual=True)
    keys = register.key.astype(jnp.float32) * query.shape[-1] ** -0.5
    logits = jnp.sum(query[:, :, None].astype(jnp.float32) * keys, axis=-1) + register.logit_bias  # [B, T, R, H]
    total = jnp.logaddexp(log_sum.astype(jnp.float32), jax.nn.logsumexp(logits, axis=2))
    share = jnp.exp(logits - total[:, :, None])[..., None]  # of each register
    share = jax.lax.optimization_barrier(share)  # or a GPU turns both it and what it leaves
    of_registers = jnp.sum(share * register.value.astype(jnp.float32), axis=2)
    return ((1 - jnp.sum(share, axis=2)) * mixed.astype(jnp.float32) + of_registers).astype(dtype)


def _with_registers(
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    slot: int,
    register: BlockRegister | None,
    present: Bool[Array, "B N"] | None,
) -> tuple[Float[Array, "B M H K"], Float[Array, "B M H K"], Float[Array, "#B W 1 M"] | None]:
    """Keys and values with the registers in rows of padding, or in rows of their own where the residual stream has none for them
    (`Form.rows_for`); and what is added to the logits of each row: of all heads, or of each (W is 1 or their number)."""
    more = 0 if register is None else max(0, slot + register.key.shape[0] - key.shape[1])
    key, value = (jnp.pad(array, ((0, 0), (0, more), (0, 0), (0, 0))) for array in (key, value))
    present = None if present is None else jnp.pad(present, ((0, 0), (0, more)))
    return *select_registers(key, value, slot, register), row_bias(key.shape[1], slot, register, present)


def held(array: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same float32 numbers, written as such before anything reads them."""
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32)
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), jnp.float32)


def _mix(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    bias: Float[Array, "#B #H 1 N"] | None,
) -> Float[Array, "B T H K"]:
    """Softmax of the biased logits, times values; in float32. Where the logits are more than a chip holds, chunk by chunk of the queries;
    the last chunk is filled up with zeros."""
    num_queries, pictures = query.shape[1], query.shape[0] if isinstance(query.shape[0], int) else 1  # 1: any number
    of_one_query = pictures * key.shape[1] * key.shape[2]
    if num_queries * of_one_query <= ON_CHIP:
        return _mix_at_once(query, key, value, bias)
    chunk = 2 ** max(3, int(math.log2(CHUNK / of_one_query)))
    count = -(-num_queries // chunk)
    query = jnp.pad(query, ((0, 0), (0, count * chunk - num_queries), (0, 0), (0, 0)))
    chunks = jnp.swapaxes(query.reshape(-1, count, chunk, *query.shape[2:]), 0, 1)
    mixed = jax.lax.map(lambda part: _mix_at_once(part, key, value, bias), chunks)
    return jnp.swapaxes(mixed, 0, 1).reshape(query.shape)[:, :num_queries]


def _mix_at_once(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B N H K"],
    value: Float[Array, "B N H K"],
    bias: Float[Array, "#B #H 1 N"] | None,
) -> Float[Array, "B T H K"]:
    """The same of all queries: the reference of the chunks."""
    logits = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    terms = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    shares = (terms * (1.0 / jnp.sum(terms, axis=-1, keepdims=True))).astype(value.dtype)
    return jnp.einsum("bhts,bshk->bthk", shares, value, preferred_element_type=jnp.float32)
