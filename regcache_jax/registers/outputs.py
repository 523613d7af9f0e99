"""What an encoder, float or quantised, gives for an array of images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from regcache_jax.core.outputs import Outputs, joined
from regcache_jax.data.cut import in_batches
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.outputs import encode_outputs

_encode = jax.jit(encode_outputs, static_argnames="patches")


def outputs_of(
    encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], batch_size: int = 64, *, patches: bool
) -> Outputs:
    """What an objective reads of an array of images, in batches of one shape."""
    encoder = encoder.replace(scheme=None if encoder.scheme is None else encoder.scheme.running)
    batches = [
        _encode(encoder, jnp.asarray(batch), patches=patches).on_host() for batch in in_batches(images, batch_size)
    ]
    return joined(batches).of(slice(len(images)))
