"""Deletion of the tokens that would still become outliers (paper, step 5), and filling their places for dense features.

A token's rank counts the tokens that outrank it: larger l-inf norm first, then the earlier position. Ranks need no sort,
so the same few lines serve masks of a traced count (search) and a gather of a fixed count (serving).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def linf_norm(hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """Largest magnitude over the last axis, in float32."""
    return jnp.max(jnp.abs(hidden), axis=-1).astype(jnp.float32)


def norm_rank(hidden: Float[Array, "B N D"], num_protected: int) -> Int[Array, "B N"]:
    """Rank of every token by l-inf norm, 0 the largest; ties break by position. The first `num_protected` rank last."""
    position = jnp.arange(hidden.shape[1], dtype=jnp.int32)
    return _rank(jnp.where(position < num_protected, -1.0, linf_norm(hidden)))


def _rank(norms: Float[Array, "B N"]) -> Int[Array, "B N"]:
    """How many entries outrank each: larger ones, and equal ones before it."""
    position = jnp.arange(norms.shape[1], dtype=jnp.int32)
    earlier = position[None, :] < position[:, None]
    outranks = (norms[:, None, :] > norms[:, :, None]) | ((norms[:, None, :] == norms[:, :, None]) & earlier)
    return jnp.sum(outranks, axis=-1, dtype=jnp.int32)


def all_but_one(count: Int[Array, ""] | int, there: Bool[Array, "B N"]) -> Int[Array, "B 1"]:
    """How many of a padded picture's tokens are deleted: so many, but one is left at least."""
    return jnp.minimum(jnp.int32(count), jnp.sum(there, axis=1, keepdims=True, dtype=jnp.int32) - 1)


def mark_largest(
    hidden: Float[Array, "B N D"], count: Int[Array, ""] | int, num_protected: int, padded: bool = False
) -> Bool[Array, "B N"]:
    """True for the `count` tokens of largest norm; `count` may be traced. Protected tokens are never marked, and of `padded` pictures,
    whose rows of zeros are no tokens, one token is left."""
    position = jnp.arange(hidden.shape[1], dtype=jnp.int32)
    if padded:
        there = jnp.any(hidden != 0, axis=-1)
        return there & (norm_rank(hidden, num_protected) < all_but_one(count, there))
    return (norm_rank(hidden, num_protected) < count) & (position >= num_protected)


def delete_largest(
    hidden: Float[Array, "B P D"],
    count: int,
    num_protected: int,
    *,
    num_tokens: int | None = None,
    rows: int | None = None,
    padded: bool = False,
) -> tuple[Float[Array, "B R D"], Int[Array, "B M"]]:
    """Drops the `count` tokens of largest norm. Returns the M = N - count others in their order, and their positions.

    Only the first `num_tokens` rows of `hidden` are tokens (default: all). `rows` (default M) asks for more rows than remain;
    the last token is repeated in them. Of `padded` pictures, whose rows of zeros are no tokens (position -1), one token is left, and
    more rows are zeros. What stays is chosen by a product with a matrix of zeros and ones, for which a TPU needs neither a
    sort nor a gather."""
    num_tokens = num_tokens or hidden.shape[1]
    remaining = num_tokens - count
    row = jnp.arange(hidden.shape[1], dtype=jnp.int32)
    wanted = jnp.arange(rows or remaining, dtype=jnp.int32)
    if padded:
        there = jnp.any(hidden != 0, axis=-1)
        kept = there & (norm_rank(hidden, num_protected) >= all_but_one(count, there))
    else:
        is_token = row < num_tokens
        norms = jnp.where(is_token & (row >= num_protected), linf_norm(hidden), -1.0)
        kept = is_token & ((_rank(norms) >= count) | (row < num_protected))
        wanted = jnp.minimum(wanted, remaining - 1)
    not_after = (row[:, None] <= row[None, :]).astype(
        jnp.float32
    )  # a product counts what a TPU's cumsum takes seven operations for
    place = jnp.einsum("bp,pq->bq", kept.astype(jnp.float32), not_after, precision="highest").astype(jnp.int32) - 1
    chosen = kept[:, None, :] & (place[:, None, :] == wanted[:, None])  # [B, R, P], one True a row
    tokens = jnp.einsum("brp,bpd->brd", chosen.astype(hidden.dtype), hidden, precision="highest")
    positions = jnp.argmax(chosen[:, :remaining], axis=-1).astype(jnp.int32)
    if padded:
        positions = jnp.where(jnp.any(chosen[:, :remaining], axis=-1), positions, -1)
    return tokens, positions


def fill_deleted(patches: Float[Array, "B M D"], positions: Int[Array, "B M"], grid: int) -> Float[Array, "B P D"]:
    """Puts kept patches back on their `grid` x `grid` map; a deleted place gets the mean of its (up to 8) kept neighbours,
    and the mean of all kept patches where it has none (paper, step 5: dense tasks). `positions` count patches from 0."""
    one_hot = jax.nn.one_hot(positions, grid * grid, dtype=jnp.float32)
    placed = jnp.einsum("bmp,bmd->bpd", one_hot, patches.astype(jnp.float32))
    return fill_absent(placed, jnp.sum(one_hot, axis=1) > 0, grid).astype(patches.dtype)


def fill_lines(
    patches: Float[Array, "B N D"], kept: Bool[Array, "B N"], there: Bool[Array, "B N"], places: Int[Array, "2 B N"]
) -> Float[Array, "B N D"]:
    """The same of pictures of any shape, whose patches (`there`) have these rows and columns; zeros where there is none. Where no patch is
    `kept` may lie anything."""
    row, column = (jnp.abs(each[:, :, None] - each[:, None, :]) <= 1 for each in places)
    kept32 = jnp.where(kept[..., None], patches.astype(jnp.float32), 0.0)
    near = (row & column & kept[:, None, :]).astype(jnp.float32)
    count = jnp.sum(near, axis=-1, keepdims=True)
    everywhere = jnp.sum(kept32, axis=1, keepdims=True) / jnp.sum(kept, axis=1, dtype=jnp.float32)[:, None, None]
    beside = jnp.einsum("bmn,bnd->bmd", near, kept32) / jnp.maximum(count, 1.0)
    filled = jnp.where(kept[..., None], kept32, jnp.where(count > 0, beside, everywhere))
    return jnp.where(there[..., None], filled, 0.0).astype(patches.dtype)


def fill_absent(patches: Float[Array, "B P D"], there: Bool[Array, "B P"], grid: int) -> Float[Array, "B P D"]:
    """The same where absent patches still have their places, with anything in them."""
    batch, num_places, width = patches.shape
    mask = there[..., None].astype(jnp.float32)
    kept = patches.astype(jnp.float32) * mask
    placed, present = kept.reshape(batch, grid, grid, width), mask.reshape(batch, grid, grid, 1)

    def neighbours(values: Float[Array, "B G G D"]) -> Float[Array, "B G G D"]:
        return jax.lax.reduce_window(values, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    count = neighbours(present)
    everywhere = (jnp.sum(kept, axis=1) / jnp.sum(mask, axis=1))[:, None, None, :]
    filled = jnp.where(count > 0, neighbours(placed) / jnp.maximum(count, 1.0), everywhere)
    return jnp.where(present > 0, placed, filled).reshape(batch, num_places, width).astype(patches.dtype)
