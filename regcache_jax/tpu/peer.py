"""What a user would run without this project: the ordinary Flax Linen encoder in bf16, as big_vision writes it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from regcache_jax.core.spec import BlockSpec, ImageSpec
from regcache_jax.encoders.blocks import ACTIVATIONS
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.sheets import grids_of
from regcache_jax.ops.positions import positions_on_grids
from regcache_jax.ops.rotary import rotate


class Peer(nn.Module):
    """An image tower of any spec, its positions a table or rotary. LayerScale is left out: it can be folded into weights; and what
    pools or follows behind the blocks but for attention pooling with an MLP (`map`)."""

    spec: ImageSpec

    @nn.compact
    def __call__(self, images: Float[Array, "B Y X 3"]) -> Float[Array, "B E"]:
        """Pooled features."""
        spec, blocks = self.spec, self.spec.blocks
        options: dict[str, Any] = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
        patch = (spec.patch_size, spec.patch_size)
        normal, mask = nn.initializers.normal(), None
        if spec.max_patches is None:
            hidden = nn.Conv(blocks.width, patch, patch, padding="VALID", use_bias=spec.patch_bias, **options)(images)
            hidden = hidden.reshape(hidden.shape[0], -1, blocks.width)
            hidden = self.norm(hidden) if spec.patch_norm else hidden
        else:
            grids = grids_of(images)
            hidden = nn.Dense(blocks.width, **options)(images[:, :, :-1].reshape(*images.shape[:2], -1))
            table = self.param("positions", normal, (spec.stored_grid**2, blocks.width), jnp.bfloat16)
            places, sides = (grids.row, grids.column), (grids.rows, grids.columns)
            hidden = hidden + positions_on_grids(table, spec.stored_grid, places, sides).astype(jnp.bfloat16)
            mask = grids.there[:, None, None, :]
        if spec.num_protected:
            front = self.param("front", normal, (1, spec.num_protected, blocks.width), jnp.bfloat16)
            hidden = jnp.concatenate([jnp.tile(front, (len(images), 1, 1)), hidden], axis=1)
        if spec.position_table and spec.max_patches is None:
            hidden = hidden + self.param("positions", normal, (1, spec.num_tokens, blocks.width), jnp.bfloat16)
        if spec.pre_norm:
            hidden = self.norm(hidden)
        plain = blocks.rotary is None and blocks.qk_norm == "none" and not blocks.inner_norms
        attend = nn.dot_product_attention if plain else self.own_attention
        for _ in range(blocks.num_blocks):
            normed = self.norm(hidden)
            attention = nn.MultiHeadDotProductAttention(
                blocks.num_heads, use_bias=blocks.bias, attention_fn=attend, **options
            )
            hidden = hidden + attention(normed, normed, mask=mask)
            hidden = hidden + self.mlp(self.norm(hidden), blocks, options)
        tokens = self.norm(hidden) if spec.final_norm else hidden
        if spec.pooling == "map":
            probe = self.param("probe", normal, (1, 1, blocks.width), jnp.bfloat16)
            probe = jnp.tile(probe, (len(images), 1, 1))
            pooled = nn.MultiHeadDotProductAttention(spec.head.num_heads, **options)(probe, tokens, mask=mask)
            pooled = (pooled + self.mlp(self.norm(pooled), spec.head, options))[:, 0]
        else:
            pooled = tokens[:, 0] if spec.pooling == "class" else jnp.mean(tokens, axis=1)
        return pooled if spec.projection is None else nn.Dense(spec.projection, **options)(pooled)

    def norm(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """A norm of the blocks' kind, with parameters of its own."""
        kind = nn.RMSNorm if self.spec.blocks.norm == "rms" else nn.LayerNorm
        return kind(epsilon=self.spec.blocks.norm_eps, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(hidden)

    def own_attention(
        self,
        query: Float[Array, "B N H K"],
        key: Float[Array, "B N H K"],
        value: Float[Array, "B N H K"],
        **options: Any,
    ) -> Float[Array, "B N H K"]:
        """Flax's own attention of queries and keys that are normed, and that rotary positions have turned; what it mixes may be normed."""
        blocks = self.spec.blocks
        flat = (*query.shape[:2], blocks.width)
        if blocks.qk_norm == "head":
            query, key = self.norm(query), self.norm(key)
        elif blocks.qk_norm == "width":
            query, key = (self.norm(each.reshape(flat)).reshape(each.shape) for each in (query, key))
        turn = Run(blocks, protected=self.spec.protected).turn(query.shape[1])
        if blocks.rotary is not None and turn is not None:
            query, key = (rotate(each, turn, blocks.rotary) for each in (query, key))
        mixed = nn.dot_product_attention(query, key, value, **options)
        return self.norm(mixed.reshape(flat)).reshape(mixed.shape) if blocks.inner_norms else mixed

    def mlp(self, hidden: Float[Array, "B N D"], blocks: BlockSpec, options: dict[str, Any]) -> Float[Array, "B N D"]:
        """Two layers, or SwiGLU."""
        activate = ACTIVATIONS[blocks.activation]
        options = {**options, "use_bias": blocks.bias}
        features = nn.Dense(blocks.mlp_width, **options)(hidden)
        features = activate(features)
        if blocks.gated_mlp:
            features = features * nn.Dense(blocks.mlp_width, **options)(hidden)
        features = self.norm(features) if blocks.inner_norms else features
        return nn.Dense(blocks.width, **options)(features)
