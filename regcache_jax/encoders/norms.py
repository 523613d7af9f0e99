"""The norms of a tower, of the kind that its blocks have: of tokens, and of queries and keys."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.sites import Norm
from regcache_jax.core.spec import BlockSpec


def layer_norm(
    hidden: Float[Array, "*B D"], norm: Norm, eps: float, *, two_passes: bool = False
) -> Float[Array, "*B D"]:
    """LayerNorm over the last axis, computed in float32 in one pass (mean of squares less squared mean), or in two (mean square of what is
    left without the mean), of which XLA makes a single kernel on a GPU."""
    hidden32 = hidden.astype(jnp.float32)
    mean = jnp.mean(hidden32, axis=-1, keepdims=True)
    if two_passes:
        variance = jnp.mean(jnp.square(hidden32 - mean), axis=-1, keepdims=True)
    else:
        variance = jnp.mean(jnp.square(hidden32), axis=-1, keepdims=True) - jnp.square(mean)
    normed = (hidden32 - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + eps)
    return _scaled(normed, norm).astype(hidden.dtype)


def rms_norm(hidden: Float[Array, "*B D"], norm: Norm, eps: float) -> Float[Array, "*B D"]:
    """RMSNorm over the last axis (1910.07467), computed in float32: no mean is subtracted."""
    hidden32 = hidden.astype(jnp.float32)
    square = jnp.mean(jnp.square(hidden32), axis=-1, keepdims=True)
    return _scaled(hidden32 * jax.lax.rsqrt(square + eps), norm).astype(hidden.dtype)


def _scaled(normed: Float[Array, "*B D"], norm: Norm) -> Float[Array, "*B D"]:
    scaled = normed * norm.scale.astype(jnp.float32)
    return scaled if norm.bias is None else scaled + norm.bias.astype(jnp.float32)


def apply_norm(
    hidden: Float[Array, "*B D"], norm: Norm, spec: BlockSpec, *, two_passes: bool = False
) -> Float[Array, "*B D"]:
    """The norm that a spec says; `two_passes` of a LayerNorm."""
    if spec.norm == "rms":
        return rms_norm(hidden, norm, spec.norm_eps)
    return layer_norm(hidden, norm, spec.norm_eps, two_passes=two_passes)


def norm_heads(heads: Float[Array, "*B N H K"], norm: Norm | None, spec: BlockSpec) -> Float[Array, "*B N H K"]:
    """Queries or keys, normed as the spec says: not at all, each head by itself, or all of a token's as one."""
    if norm is None:
        return heads
    if spec.qk_norm == "head":
        return apply_norm(heads, norm, spec)
    together = jax.tree.map(lambda leaf: leaf.reshape(-1), norm)
    width = math.prod(heads.shape[-2:])
    return apply_norm(heads.reshape(*heads.shape[:-2], width), together, spec).reshape(heads.shape)


def norm_mixed(mixed: Float[Array, "*B N H K"], norm: Norm | None, spec: BlockSpec) -> Float[Array, "*B N H K"]:
    """What attention has mixed, all heads of a token as one, where it is normed."""
    if norm is None:
        return mixed
    return apply_norm(mixed.reshape(*mixed.shape[:-2], -1), norm, spec).reshape(mixed.shape)
