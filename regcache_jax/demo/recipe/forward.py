"""The image tower as training sees it: the project's own block stack, one picture a lane, with what the losses look at.

The stack takes one plan for all pictures; here `jax.vmap` gives each picture its own, and its own set of skipped MLPs (a
LayerScale of 0 in that block).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import ImageSpec
from regcache_jax.demo.recipe.circuit import NUM_UNITS
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import normalize
from regcache_jax.encoders.vision import image_features

RESTING_HEADS = 2  # heads in each later block that must rest on sinks or registers


class Prefix(NamedTuple):
    """A register a picture: rows, copies (tau), and the block from which it is seen."""

    key: Float[Array, "B L H K"]
    value: Float[Array, "B L H K"]
    copies: Float[Array, "B"]
    start: Int[Array, "B"]


class Seen(NamedTuple):
    """Unit features, and by block (axis L in front): the block's input, its MLP's input, keys and values, whom the first heads
    attend to (the register's share is None without a prefix), and the largest ordinary hidden value of each token."""

    features: Float[Array, "B D"]
    hidden: Float[Array, "L B N D"]
    fc1: Float[Array, "L B N D"]
    key: Float[Array, "L B N H K"]
    value: Float[Array, "L B N H K"]
    weights: Float[Array, "L B 2 N N"]
    register_weights: Float[Array, "L B 2 N"] | None
    loudest: Float[Array, "L B N"]


def _collect(trace: BlockTrace) -> dict[str, Any]:
    register = trace.register_weights
    return {
        "hidden": trace.hidden,
        "fc1": trace.fc1,
        "key": trace.key,
        "value": trace.value,
        "weights": trace.weights[:, :RESTING_HEADS],
        "register_weights": None if register is None else register[:, :RESTING_HEADS, :, 0],
        "loudest": jnp.max(jnp.abs(trace.fc2[..., NUM_UNITS:]), axis=-1),
    }


def observe(
    image: ImageTower,
    pictures: Float[Array, "B Y X 3"],
    spec: ImageSpec,
    *,
    prefix: Prefix | None = None,
    mlp_kept: Float[Array, "B L"] | None = None,
) -> Seen:
    """Runs pictures in 0..1 through the tower. `mlp_kept` is 1 where a block's MLP runs and 0 where it is left out."""
    count, blocks = pictures.shape[0], spec.blocks
    kept = jnp.ones((count, blocks.num_blocks), jnp.float32) if mlp_kept is None else mlp_kept
    ones = jnp.ones((blocks.num_blocks, blocks.width), jnp.float32)
    zero = jnp.zeros((), jnp.int32)

    def one(picture: Float[Array, "Y X 3"], kept: Float[Array, "L"], prefix: Prefix | None) -> tuple[Any, Any]:
        blocks = image.blocks.replace(layer_scale1=ones, layer_scale2=ones * kept[:, None])
        plan = None
        if prefix is not None:
            stop = jnp.full((), blocks.num_blocks, jnp.int32)
            rows = prefix.key[:, None], prefix.value[:, None]
            plan = RegisterPlan(*rows, prefix.copies, prefix.start, stop, delete_block=zero, delete_count=zero)
        output = image_features(
            image.replace(blocks=blocks), picture[None] * 2 - 1, spec, plan=plan, collect={"seen": _collect}
        )
        return output.features[0], jax.tree.map(lambda leaf: leaf[:, 0], output.collected["seen"])

    features, seen = jax.vmap(one, out_axes=(0, 1))(pictures, kept, prefix)
    return Seen(normalize(features), **seen)
