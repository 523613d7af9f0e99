"""What a user would run without this project: the ordinary Flax Linen encoder in bf16, as big_vision writes it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import ACTIVATIONS


class Peer(nn.Module):
    """An image tower of any spec whose positions are a table."""

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
        hidden = hidden + self.param("positions", normal, (1, spec.num_tokens, blocks.width), jnp.bfloat16)
        if spec.pre_norm:
            hidden = nn.LayerNorm(**norm)(hidden)
        for _ in range(blocks.num_blocks):
            normed = nn.LayerNorm(**norm)(hidden)
            hidden = hidden + nn.MultiHeadDotProductAttention(blocks.num_heads, **options)(normed, normed)
            hidden = hidden + self.mlp(nn.LayerNorm(**norm)(hidden), options)
        tokens = nn.LayerNorm(**norm)(hidden) if spec.final_norm else hidden
        if spec.pooling == "map":
            probe = self.param("probe", normal, (1, 1, blocks.width), jnp.bfloat16)
            probe = jnp.tile(probe, (len(images), 1, 1))
            pooled = nn.MultiHeadDotProductAttention(blocks.num_heads, **options)(probe, tokens)
            pooled = (pooled + self.mlp(nn.LayerNorm(**norm)(pooled), options))[:, 0]
        else:
            pooled = tokens[:, 0] if spec.pooling == "class" else jnp.mean(tokens, axis=1)
        return pooled if spec.projection is None else nn.Dense(spec.projection, **options)(pooled)

    def mlp(self, hidden: Float[Array, "B N D"], options: dict[str, Any]) -> Float[Array, "B N D"]:
        """Two layers, or SwiGLU."""
        blocks = self.spec.blocks
        activate = ACTIVATIONS[blocks.activation]
        features = nn.Dense(blocks.mlp_width, **options)(hidden)
        features = activate(features)
        if blocks.gated_mlp:
            features = features * nn.Dense(blocks.mlp_width, **options)(hidden)
        return nn.Dense(blocks.width, **options)(features)
