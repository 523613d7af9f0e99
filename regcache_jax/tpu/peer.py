"""What a user would run without this project: the ordinary Flax Linen encoder in bf16, as big_vision writes it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from regcache_jax.core.spec import BlockSpec, ImageSpec
from regcache_jax.encoders.blocks import ACTIVATIONS
from regcache_jax.encoders.rounding import Run
from regcache_jax.ops.rotary import rotate


class Peer(nn.Module):
    """An image tower of any spec, its positions a table or rotary. LayerScale is left out: it can be folded into weights."""

    spec: ImageSpec

    @nn.compact
    def __call__(self, images: Float[Array, "B Y X 3"]) -> Float[Array, "B E"]:
        """Pooled features."""
        spec, blocks = self.spec, self.spec.blocks
        options: dict[str, Any] = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
        norm = {**options, "epsilon": blocks.norm_eps}
        patch = (spec.patch_size, spec.patch_size)
        hidden = nn.Conv(blocks.width, patch, patch, padding="VALID", use_bias=spec.patch_bias, **options)(images)
        hidden = hidden.reshape(hidden.shape[0], -1, blocks.width)
        normal = nn.initializers.normal()
        if spec.num_protected:
            front = self.param("front", normal, (1, spec.num_protected, blocks.width), jnp.bfloat16)
            hidden = jnp.concatenate([jnp.tile(front, (len(images), 1, 1)), hidden], axis=1)
        if spec.position_table:
            hidden = hidden + self.param("positions", normal, (1, spec.num_tokens, blocks.width), jnp.bfloat16)
        if spec.pre_norm:
            hidden = nn.LayerNorm(**norm)(hidden)
        attend = nn.dot_product_attention if blocks.rotary is None else self.turned_attention
        for _ in range(blocks.num_blocks):
            normed = nn.LayerNorm(**norm)(hidden)
            attention = nn.MultiHeadDotProductAttention(blocks.num_heads, attention_fn=attend, **options)
            hidden = hidden + attention(normed, normed)
            hidden = hidden + self.mlp(nn.LayerNorm(**norm)(hidden), blocks, options)
        tokens = nn.LayerNorm(**norm)(hidden) if spec.final_norm else hidden
        if spec.pooling == "map":
            probe = self.param("probe", normal, (1, 1, blocks.width), jnp.bfloat16)
            probe = jnp.tile(probe, (len(images), 1, 1))
            pooled = nn.MultiHeadDotProductAttention(spec.head.num_heads, **options)(probe, tokens)
            pooled = (pooled + self.mlp(nn.LayerNorm(**norm)(pooled), spec.head, options))[:, 0]
        else:
            pooled = tokens[:, 0] if spec.pooling == "class" else jnp.mean(tokens, axis=1)
        return pooled if spec.projection is None else nn.Dense(spec.projection, **options)(pooled)

    def turned_attention(
        self,
        query: Float[Array, "B N H K"],
        key: Float[Array, "B N H K"],
        value: Float[Array, "B N H K"],
        **options: Any,
    ) -> Float[Array, "B N H K"]:
        """Flax's own attention of queries and keys that rotary positions have turned."""
        rotary = self.spec.blocks.rotary
        turn = Run(self.spec.blocks, protected=self.spec.protected).turn(query.shape[1])
        assert rotary is not None and turn is not None
        return nn.dot_product_attention(rotate(query, turn, rotary), rotate(key, turn, rotary), value, **options)

    def mlp(self, hidden: Float[Array, "B N D"], blocks: BlockSpec, options: dict[str, Any]) -> Float[Array, "B N D"]:
        """Two layers, or SwiGLU."""
        activate = ACTIVATIONS[blocks.activation]
        features = nn.Dense(blocks.mlp_width, **options)(hidden)
        features = activate(features)
        if blocks.gated_mlp:
            features = features * nn.Dense(blocks.mlp_width, **options)(hidden)
        return nn.Dense(blocks.width, **options)(features)
