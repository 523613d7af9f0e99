"""Going through an encoder block after block: what methods need that correct a block on what reaches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.progress import in_parts
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.vision import embed_patches

State = tuple[Float[Array, "B N D"], Bool[Array, "B N"] | None]
"""The residual stream between two blocks, and which tokens are still there."""


def plan_of_block(plan: RegisterPlan | None, block: int) -> RegisterPlan | None:
    """What a plan does in one block, as the plan of a stack of that block alone."""
    if plan is None:
        return None
    copies = plan.copies[block : block + 1] if plan.copies.ndim else plan.copies
    return RegisterPlan(
        plan.key[block : block + 1], plan.value[block : block + 1], copies,
        plan.start - block, plan.stop - block, plan.delete_block - block, plan.delete_count,
    )  # fmt: skip


def all_entering(encoder: Encoder, batches: Sequence[Float[Array | np.ndarray, "_ Y X 3"]]) -> list[State]:
    """The states of all batches that enter the first block. The pass over them is that of the blocks, so here nobody hears of it: rows are
    taken by number."""
    return [_entering(encoder, batches[number]) for number in range(len(batches))]


def _entering(encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"]) -> State:
    hidden = embed_patches(encoder.params.image, jnp.asarray(images, encoder.dtype), encoder.spec.image)
    return hidden, None if encoder.plan is None else jnp.ones(hidden.shape[:2], bool)


def blocks_of(encoder: Encoder, batches: Sequence[Float[Array | np.ndarray, "_ Y X 3"]], method: str) -> Iterator[int]:
    """The numbers of the blocks, one after the other; who hears of the batches hears how far a method is."""
    return in_parts(batches, encoder.spec.image.blocks.num_blocks, f"{method}: block")
