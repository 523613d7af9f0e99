"""Text towers: CLIP's and SigLIP's transformers, and the hashed words of the bundled encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import HashedText, TextTower
from regcache_jax.core.spec import TextSpec
from regcache_jax.encoders.blocks import Collectors, layer_norm, run_blocks
from regcache_jax.encoders.rounding import Run, linear


def causal_bias(num_tokens: int) -> Float[Array, "1 1 T T"]:
    """-inf where a token would look ahead."""
    position = jnp.arange(num_tokens, dtype=jnp.int32)
    return jnp.where(position[None, :] <= position[:, None], 0.0, -jnp.inf)[None, None]


def pooled_position(ids: Int[Array, "B T"], spec: TextSpec) -> Int[Array, "B"]:
    """Where the sentence's feature is read: the first end-of-text id, the largest id (open_clip), or the last position."""
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
    hidden = tower.token_embedding[ids] + tower.position_embedding[: ids.shape[1]]
    bias = causal_bias(ids.shape[1]) if spec.blocks.causal else None
    own = None if scheme is None else scheme.of_part("text")
    output = run_blocks(tower.blocks, hidden, Run(spec.blocks, own), bias=bias, collect=collect)
    tokens = layer_norm(output.hidden, tower.final_norm, spec.blocks.norm_eps)
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
