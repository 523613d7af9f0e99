"""Trained registers as constants: their keys and values hardly depend on the picture (2604.14433), so they can be cached as a plan's rows.

The tokens then leave the encoder: no row of them is computed in any block, and attention sees the mean of what they were.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import make_plan
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.vision import image_features
from regcache_jax.registers.reference import Images, as_batches


def registers_as_constants(encoder: Encoder, images: Images, batch_size: int = 32) -> Encoder:
    """The same encoder without its trained registers, and with a plan of one row for each: the mean of its keys and values over the
    pictures, in every block. Raises UserError for an encoder without trained registers, one with a plan, or a quantised one."""
    spec = encoder.spec
    if not spec.image.trained_registers:
        raise UserError(f"{spec.name} has no trained registers that could be made constants")
    if encoder.plan is not None or encoder.scheme is not None:
        raise UserError(
            f"{spec.name} has a plan or is quantised; its trained registers are made constants of the float encoder alone"
        )
    total: list[Float[Array, "L R H K"]] = []
    count = 0
    for batch, mask in as_batches(images, spec, batch_size):
        sums = _sums(encoder.params.image, jnp.asarray(batch, encoder.dtype), jnp.asarray(mask), spec=spec.image)
        total = [own + new for own, new in zip(total, sums, strict=True)] if total else list(sums)
        count += int(np.sum(mask))
    key, value = (own / count for own in total)
    image = dataclasses.replace(spec.image, trained_registers=0)
    params = encoder.params.replace(image=encoder.params.image.replace(registers=None))
    without = encoder.replace(params=params, spec=dataclasses.replace(spec, image=image))
    return without.with_plan(make_plan(key, value))


@functools.partial(jax.jit, static_argnames="spec")
def _sums(
    tower: ImageTower, images: Float[Array, "B Y X 3"], mask: Array, *, spec: ImageSpec
) -> tuple[Float[Array, "L R H K"], Float[Array, "L R H K"]]:
    """Keys and values of the trained registers, added up over the pictures with mask True."""
    first, last = spec.protected.class_tokens, spec.num_protected
    collected = image_features(
        tower,
        images,
        spec,
        collect={"key": lambda trace: trace.key[:, first:last], "value": lambda trace: trace.value[:, first:last]},
    ).collected
    key, value = (
        jnp.einsum("lbrhk,b->lrhk", collected[name].astype(jnp.float32), mask.astype(jnp.float32))
        for name in ("key", "value")
    )
    return key, value
