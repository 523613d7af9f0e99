"""Small encoders of the newer families, by the specs of the families themselves."""

from __future__ import annotations

import jax
import numpy as np
import small

from regcache_jax.core.spec import TextSpec
from regcache_jax.encoders import dinotxt, families, normed_families, radio
from regcache_jax.encoders.encoder import Encoder, init_params

SIZE = (24, 2, 3, 40)
_AIMV2 = normed_families.aimv2_image(normed_families.aimv2_blocks(SIZE), 4, 16)
_TEXT = TextSpec(50, 6, normed_families.aimv2_blocks(SIZE, causal=True), "eot", eot_id=49, projection=16)
SPECS = {
    "timm AIMv2": normed_families.aimv2_spec("small", _AIMV2, small.PICTURE),  # which has no texts
    "AIMv2": normed_families.aimv2_spec("small", _AIMV2, small.PICTURE, _TEXT),
    "dino.txt": dinotxt.dinotxt_spec(
        "small",
        small.IMAGES["dinov3"],
        dinotxt.further_blocks(small.BLOCKS, 1, 32),
        dinotxt.dinotxt_text(64, 1, 40, 6, 50, 48),
    ),
    "EVA-02": normed_families.eva_spec(
        "small", normed_families.eva_image(SIZE, 4, 16, 16), families.clip_text(SIZE, 16, 6, 50)
    ),
    "C-RADIO": radio.radio_spec("small", SIZE, 2, 5, patch=4, pixels=16, grid=7),
    "Qwen": normed_families.qwen_spec("small", SIZE, 4, 16),
}


def encoder(layout: str) -> Encoder | None:
    """One that this layout can hold; None where it is of no newer family."""
    spec = next((spec for word, spec in SPECS.items() if word in layout), None)
    if spec is None:
        return None
    params = jax.tree.map(np.array, init_params(spec, jax.random.key(0)))
    if layout == "C-RADIO":
        params.image.position_embedding[0] = 0.0  # the class token's position, which it cannot hold
    return Encoder(params, spec=spec)
