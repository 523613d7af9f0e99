"""Candidates and cache (paper, steps 2 and 3): the tokens of largest norm over the whole set, and what attention sees of them.

Streamed: for every target block the running list of the largest tokens keeps their keys and values, so memory does not grow
with the set. Keys and values are recorded in place, in each token's own image, and averaged (not the hidden states).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.vision import image_features
from regcache_jax.registers.delete import linf_norm

CANDIDATES = 100
"""How many tokens over the whole set make a register (paper, step 2)."""


class Candidates(NamedTuple):
    """The largest tokens at the inputs of T target blocks, largest first: norms, and keys and values in every block."""

    norm: Float[Array, "T C"]
    key: Float[Array, "T C L H K"]
    value: Float[Array, "T C L H K"]


class Seen(NamedTuple):
    """What one batch shows: the l-inf norm of every block's input, and all keys and values."""

    norm: Float[Array, "L B N"]
    key: Float[Array, "L B N H K"]
    value: Float[Array, "L B N H K"]


@functools.partial(jax.jit, static_argnames=("spec", "count", "class_token"))
def _merge(
    params: Any, images: Any, mask: Any, targets: Any, running: Candidates, *, spec: Any, count: int, class_token: bool
) -> Candidates:
    """Adds one batch to the running list; images with mask False do not count."""
    collected = image_features(
        params, images, spec,
        collect={"norm": lambda trace: linf_norm(trace.hidden), "key": lambda t: t.key, "value": lambda t: t.value},
    ).collected  # fmt: skip
    seen = Seen(**collected)
    batch, num_tokens = images.shape[0], seen.norm.shape[2]
    position = jnp.arange(num_tokens, dtype=jnp.int32)
    first = 0 if class_token else int(spec.class_token)
    eligible = mask[:, None] & (position >= first) & ~((position >= spec.class_token) & (position < spec.num_protected))
    norms = jnp.where(eligible, seen.norm[targets], -1.0).reshape(len(targets), batch * num_tokens)
    top, index = jax.lax.top_k(norms, min(count, batch * num_tokens))

    def rows(values: Float[Array, "L B N H K"]) -> Float[Array, "T C L H K"]:
        flat = values.reshape(values.shape[0], batch * num_tokens, *values.shape[3:])
        return jnp.moveaxis(flat[:, index], 0, 2)  # [L, T, C, H, K] -> [T, C, L, H, K]

    merged_norm = jnp.concatenate([running.norm, top], axis=1)
    best, order = jax.lax.top_k(merged_norm, count)

    def keep(old: Float[Array, "T C L H K"], new: Float[Array, "T C L H K"]) -> Float[Array, "T C L H K"]:
        joined = jnp.concatenate([old, new.astype(jnp.float32)], axis=1)
        return jnp.take_along_axis(joined, order[:, :, None, None, None], axis=1)

    return Candidates(best, keep(running.key, rows(seen.key)), keep(running.value, rows(seen.value)))


def find_candidates(
    encoder: Encoder,
    batches: Iterable[tuple[Float[Array, "B Y X 3"], Any]],
    targets: list[int],
    *,
    count: int = CANDIDATES,
    class_token: bool = False,
) -> Candidates:
    """The `count` tokens of largest l-inf norm at the input of each target block, over all batches (images, mask).

    Patches only; `class_token` lets the class token in. Rows that the set is too small to fill have norm -1."""
    blocks = encoder.spec.image.blocks
    rows = jnp.zeros((len(targets), count, blocks.num_blocks, blocks.num_heads, blocks.head_dim), jnp.float32)
    running = Candidates(jnp.full((len(targets), count), -1.0), rows, rows)
    for images, mask in batches:
        running = _merge(
            encoder.params["image"], jnp.asarray(images, encoder.dtype), jnp.asarray(mask), jnp.asarray(targets), running,
            spec=encoder.spec.image, count=count, class_token=class_token,
        )  # fmt: skip
    return running


def registers_from(
    candidates: Candidates, target: int, num_registers: int = 1, max_registers: int | None = None
) -> tuple[Float[Array, "L R H K"], Float[Array, "L R H K"], Float[Array, "R"]]:
    """Averages the candidates of one target (an index into `targets`) into R registers: keys, values and each one's share.

    One register is the plain mean (paper, step 3). More are the means of clusters of the stacked keys and values (Lloyd's
    algorithm from the farthest points, deterministic); a share is the part of the candidates in the cluster. Registers up to
    `max_registers` are filled with rows of share 0, so that plans of any R have one shape."""
    valid = np.asarray(candidates.norm[target]) >= 0
    key = np.asarray(candidates.key[target])[valid]
    value = np.asarray(candidates.value[target])[valid]
    labels = _cluster(np.concatenate([key, value], axis=-1).reshape(len(key), -1), num_registers)
    wanted = max_registers or num_registers
    shape = (key.shape[1], wanted, *key.shape[2:])
    mean_key, mean_value, share = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(wanted, np.float32)
    for index in range(labels.max() + 1):
        members = labels == index
        mean_key[:, index], mean_value[:, index] = key[members].mean(axis=0), value[members].mean(axis=0)
        share[index] = members.mean()
    return jnp.asarray(mean_key), jnp.asarray(mean_value), jnp.asarray(share)


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
