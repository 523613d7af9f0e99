"""What an encoder that was quantised does to pictures that gave no scale."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from regcache_jax.core.objective import LabelFree, reads_patches
from regcache_jax.core.outputs import image_errors
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.registers.outputs import outputs_of
from regcache_jax.registers.search.claim import Claim, claim_of
from regcache_jax.registers.search.result import moved_more


def held_out_error(
    encoder: Encoder, quantized: Encoder, images: Float[np.ndarray, "k Y X 3"], objective: LabelFree
) -> tuple[Claim, str | None]:
    """The error, and a remark where the plan alone, in float, is to blame for most of it."""
    found, with_plan, exact = (
        outputs_of(each, images, patches=reads_patches(objective))
        for each in (quantized, encoder.with_plan(quantized.plan), encoder.with_plan(None))
    )
    claim = claim_of(image_errors(objective, found, exact))
    return claim, moved_more(float(image_errors(objective, with_plan, exact).mean()), claim.error, objective)
