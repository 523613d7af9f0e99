"""Going through an encoder block after block: what methods need that correct a block on what reaches it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from regcache_jax.core.plan import RegisterPlan
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


def entering(encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"]) -> State:
    """The state that enters the first block."""
    hidden = embed_patches(encoder.params.image, jnp.asarray(images, encoder.dtype), encoder.spec.image)
    return hidden, None if encoder.plan is None else jnp.ones(hidden.shape[:2], bool)
