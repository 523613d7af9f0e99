"""Text towers: CLIP's and SigLIP's transformers, and the hashed words of the bundled encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import HashedText, TextTower
from regcache_jax.core.spec import TextSpec
from regcache_jax.encoders.blocks import Collectors, run_blocks
from regcache_jax.encoders.norms import apply_norm
from regcache_jax.encoders.rounding import Run, linear


def causal_bias(num_tokens: int) -> Float[Array, "1 1 T T"]:
    """-inf where a token would look ahead."""
    position = jnp.arange(num_tokens, dtype=jnp.int32)
    return jnp.where(position[None, :] <= position[:, None], 0.0, -jnp.inf)[None, None]


def sinusoids(num_tokens: int, width: int) -> Float[Array, "T D"]:
    """Positions that no file holds: the sines, then the cosines, of D/2 periods from 1 to 10,000 times 2 pi."""
    half = width // 2
    frequency = jnp.asarray(10_000.0 ** (-np.arange(half) / max(half - 1, 1)), jnp.float32)
    angle = jnp.arange(num_tokens, dtype=jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def pooled_position(ids: Int[Array, "B T"], spec: TextSpec) -> Int[Array, "B"]:
    """Where the sentence's feature is read, unless it is a mean: the first end-of-text id, the largest id (open_clip), or the last
    position."""
    if spec.pooling == "eot":
        return jnp.argmax(ids == spec.eot_id, axis=-1)
    if spec.pooling == "argmax":
        return jnp.argmax(ids, axis=-1)
    return jnp.full(ids.shape[:1], ids.shape[1] - 1, jnp.int32)


def text_features(
    tower: TextTower | HashedText,
    ids: Int[Array, "B T"],
    spec: TextSpec,
    *,
    scheme: Scheme | None = None,
    collect: Collectors | None = None,
) -> tuple[Float[Array, "B E"], dict]:
    """Features of padded token ids, and what was collected by block. `scheme`: that of a quantised encoder."""
    if isinstance(tower, HashedText):
        return hashed_features(tower, ids), {}
    table = tower.position_embedding
    positions = sinusoids(ids.shape[1], spec.blocks.width) if table is None else table[: ids.shape[1]]
    hidden = tower.token_embedding[ids]
    hidden = hidden + positions.astype(hidden.dtype)
    bias = causal_bias(ids.shape[1]) if spec.blocks.causal else None
    own = None if scheme is None else scheme.of_part("text")
    averaged = spec.pooling == "mean"
    present = None
    if averaged:
        present = (ids != 0).at[:, 0].set(True)  # without a word attention still sees one row
        hidden = jnp.where(present[..., None], hidden, 0)
    output = run_blocks(tower.blocks, hidden, Run(spec.blocks, own), present=present, bias=bias, collect=collect)
    tokens = apply_norm(output.hidden, tower.final_norm, spec.blocks)
    if averaged:
        words = (ids != 0)[..., None].astype(tokens.dtype)
        pooled = jnp.sum(tokens * words, axis=1, keepdims=True) / (jnp.sum(words, axis=1, keepdims=True) + 1e-8)
    else:
        pooled = jnp.take_along_axis(tokens, pooled_position(ids, spec)[:, None, None], axis=1)
    if tower.projection is not None:
        pooled = linear(pooled, tower.projection)
    return pooled[:, 0], output.collected


def hashed_features(tower: HashedText, ids: Int[Array, "B T"]) -> Float[Array, "B E"]:
    """Hashed words and trigrams (id 0 is padding): embeddings summed over sqrt(count), then a two-layer MLP."""
    present = (ids > 0)[..., None].astype(jnp.float32)
    count = jnp.maximum(jnp.sum(present, axis=1), 1.0)
    bag = jnp.sum(tower.embedding[ids] * present, axis=1) / jnp.sqrt(count)
    hidden = jax.nn.gelu(linear(bag[:, None], tower.fc1), approximate=True)
    return linear(hidden, tower.fc2)[:, 0]
