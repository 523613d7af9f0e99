"""Candidates and cache (paper, steps 2 and 3): the tokens of largest norm over the whole set, and what attention sees of them.

Streamed: for every target block the running list of the largest tokens keeps their keys and values, so memory does not grow
with the set. Keys and values are recorded in place, in each token's own image, and averaged (`kv`, the paper); or the hidden
states are averaged and run through the blocks alone, attending to themselves (`token`).

Under rotary positions a key is turned by its patch's place. Keys are averaged as attention saw them (`position="source"`), or as they
are before they are turned (`"none"`: a register then has no place, as trained registers have none); docs/method.md compares the two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from regcache_jax.core.plan import Schedule
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import BlockSpec, ImageSpec
from regcache_jax.encoders.blocks import Collectors
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.serving import TokenRegister, token_rows
from regcache_jax.encoders.vision import image_features
from regcache_jax.ops.delete import linf_norm
from regcache_jax.ops.rotary import rotate
from regcache_jax.registers.reference import Images, as_batches

Position = Literal["source", "none"]
CANDIDATES = 100
"""How many tokens over the whole set make a register (paper, step 2)."""


class Candidates(NamedTuple):
    """The largest tokens at the inputs of T target blocks, largest first: norms, hidden states there, and keys and values in
    every block."""

    norm: Float[Array, "T C"]
    hidden: Float[Array, "T C D"]
    key: Float[Array, "T C L H K"]
    value: Float[Array, "T C L H K"]


class Seen(NamedTuple):
    """What one batch shows: every block's input, and all keys and values."""

    hidden: Float[Array, "L B N D"]
    key: Float[Array, "L B N H K"]
    value: Float[Array, "L B N H K"]


def without_position(key: Float[Array, "L B N H K"], spec: ImageSpec) -> Float[Array, "L B N H K"]:
    """The keys of all tokens of pictures as they are before rotary positions turn them."""
    turn, rotary = Run(spec.blocks, protected=spec.protected).turn(key.shape[2]), spec.blocks.rotary
    if turn is None or rotary is None:
        return key
    return jax.vmap(lambda own: rotate(own, turn.back(), rotary))(key)


COLLECT: Collectors = {"hidden": lambda t: t.hidden, "key": lambda t: t.key, "value": lambda t: t.value}
"""What `Seen` is collected by."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which candidates: at the inputs of which blocks, how many at each, whether the class token may be one, and what place a key has."""

    targets: tuple[int, ...]
    count: int = CANDIDATES
    class_token: bool = False
    position: Position = "source"

    def none_yet(self, blocks: BlockSpec) -> Running:
        """The running list before the first batch: norms of -1."""
        targets, count = len(self.targets), self.count
        rows = jnp.zeros((targets, count, blocks.num_blocks, blocks.num_heads, blocks.head_dim), jnp.float32)
        hidden = jnp.zeros((targets, count, blocks.width), jnp.float32)
        return Running(Candidates(jnp.full((targets, count), -1.0, jnp.float32), hidden, rows, rows), self)


@struct.dataclass
class Running:
    """The largest tokens of the batches so far, and which are looked for."""

    found: Candidates
    wanted: Wanted = struct.field(pytree_node=False)


def merge(seen: Seen, mask: Bool[Array, "B"], running: Running, spec: ImageSpec) -> Running:
    """Adds one batch to the running list; images with mask False do not count."""
    found, wanted = running.found, running.wanted
    if wanted.position == "none":
        seen = seen._replace(key=without_position(seen.key, spec))
    batch, num_tokens, width = seen.hidden.shape[1:]
    targets, count = jnp.asarray(wanted.targets), wanted.count
    hidden = seen.hidden[targets].astype(jnp.float32)
    position = jnp.arange(num_tokens, dtype=jnp.int32)
    is_candidate = position >= spec.num_protected
    if wanted.class_token and spec.class_token:
        is_candidate |= position == 0
    eligible = mask[:, None] & is_candidate
    norms = jnp.where(eligible, linf_norm(hidden), -1.0).reshape(len(targets), batch * num_tokens)
    top, index = jax.lax.top_k(norms, min(count, batch * num_tokens))

    def rows(values: Float[Array, "L B N H K"]) -> Float[Array, "T M L H K"]:
        flat = values.reshape(values.shape[0], batch * num_tokens, *values.shape[3:])
        return jnp.moveaxis(flat[:, index], 0, 2)  # [L, T, C, H, K] -> [T, C, L, H, K]

    own = jnp.take_along_axis(hidden.reshape(len(targets), batch * num_tokens, width), index[..., None], axis=1)
    merged_norm = jnp.concatenate([found.norm, top], axis=1)
    best, order = jax.lax.top_k(merged_norm, count)

    def keep(old: Float[Array, "T C ..."], new: Float[Array, "T M ..."]) -> Float[Array, "T C ..."]:
        joined = jnp.concatenate([old, new.astype(jnp.float32)], axis=1)
        return jnp.take_along_axis(joined, order.reshape(order.shape + (1,) * (joined.ndim - 2)), axis=1)

    kept = keep(found.hidden, own), keep(found.key, rows(seen.key)), keep(found.value, rows(seen.value))
    return Running(Candidates(best, *kept), wanted)


@functools.partial(jax.jit, static_argnames=("spec",))
def _merge(
    tower: ImageTower, images: Float[Array, "B Y X 3"], mask: Bool[Array, "B"], running: Running, *, spec: ImageSpec
) -> Running:
    seen = Seen(**image_features(tower, images, spec, collect=COLLECT).collected)
    return merge(seen, mask, running, spec)


def find_candidates(
    encoder: Encoder,
    images: Images,
    targets: Sequence[int],
    *,
    count: int = CANDIDATES,
    class_token: bool = False,
    position: Position = "source",
    batch_size: int = 32,
) -> Candidates:
    """The `count` tokens of largest l-inf norm at the input of each target block, over the whole set.

    `images`: one array of preprocessed images, or batches with masks. Patches only; `class_token` lets the class token in. `position`: of
    keys under rotary positions, see above.
    Rows that the set is too small to fill have norm -1."""
    spec, wanted = encoder.spec.image, Wanted(tuple(targets), count, class_token, position)
    running = wanted.none_yet(spec.blocks)
    for batch, mask in as_batches(images, encoder.spec, batch_size):
        part = jnp.asarray(batch, encoder.dtype)
        running = _merge(encoder.params.image, part, jnp.asarray(mask), running, spec=spec)
    return running.found


class Registers(NamedTuple):
    """R registers of one target: keys and values in every block, the mean hidden states behind them, and which share of the
    candidates is in each."""

    key: Float[Array, "L R H K"]
    value: Float[Array, "L R H K"]
    hidden: Float[Array, "R D"]
    share: Float[np.ndarray, "R"]


def registers_from(candidates: Candidates, target: int, num_registers: int = 1) -> Registers:
    """Averages the candidates of one target (an index into `targets`) into R registers.

    One register is the plain mean (paper, step 3). More are the means of clusters of the stacked keys and values (Lloyd's
    algorithm from the farthest points, deterministic), at most as many as there are different candidates."""
    valid = np.asarray(candidates.norm[target]) >= 0
    hidden, key, value = (np.asarray(rows[target])[valid] for rows in candidates[1:])
    labels = _cluster(np.concatenate([key, value], axis=-1).reshape(len(key), -1), num_registers)
    clusters = [labels == index for index in range(labels.max() + 1)]
    mean_key, mean_value = (np.stack([rows[own].mean(axis=0) for own in clusters], axis=1) for rows in (key, value))
    mean_hidden = np.stack([hidden[own].mean(axis=0) for own in clusters])
    share = np.array([own.mean() for own in clusters], np.float32)
    return Registers(jnp.asarray(mean_key), jnp.asarray(mean_value), jnp.asarray(mean_hidden), share)


def token_form(registers: Registers, encoder: Encoder, start: int) -> Registers:
    """The same registers as hidden states that enter the residual stream at block `start` and attend to themselves alone: the
    keys and values that they have there (zero before)."""
    spec, schedule = encoder.spec.image.blocks, Schedule(start, encoder.spec.image.blocks.num_blocks, 0, 0)
    register = TokenRegister(registers.hidden, jnp.float32(1.0))
    rows = token_rows(encoder.params.image.blocks, register, spec, schedule)
    key, value = (jnp.asarray(np.asarray(row)) for row in rows)  # a loaded encoder's device is not theirs
    return registers._replace(key=key, value=value)


def _cluster(points: np.ndarray, count: int, rounds: int = 20) -> np.ndarray:
    """Labels 0..count-1 of Lloyd's k-means, started at the mean's nearest point and then at the farthest ones."""
    centres = [points[np.argmin(np.square(points - points.mean(axis=0)).sum(axis=1))]]
    while len(centres) < min(count, len(points)):
        gaps = np.min([np.square(points - centre).sum(axis=1) for centre in centres], axis=0)
        centres.append(points[np.argmax(gaps)])
    labels = np.zeros(len(points), int)
    for _ in range(rounds):
        distances = np.stack([np.square(points - centre).sum(axis=1) for centre in centres], axis=1)
        updated = np.argmin(distances, axis=1)
        _, updated = np.unique(updated, return_inverse=True)
        if np.array_equal(updated, labels):
            break
        labels = updated
        centres = [points[labels == index].mean(axis=0) for index in range(labels.max() + 1)]
    return labels
