"""One pass over a calibration set, streamed, for everything that is to be known of it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import ImageSpec, Protected
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.vision import image_features

Wanted = tuple[tuple[str, "Statistic"], ...]


@runtime_checkable
class Statistic(Protocol):
    """Something to know of a calibration set. Equal ones hash alike, so that each is compiled once."""

    def of_block(self, trace: BlockTrace, protected: Protected) -> PyTree:
        """Arrays from what passes one block in one batch."""

    def add(self, total: PyTree, batch: PyTree) -> PyTree:
        """What earlier batches gave (None: this is the first) and one more batch, with axis L in front."""

    def result(self, total: PyTree) -> PyTree:
        """What is made of all batches."""


def gather(
    encoder: Encoder, batches: Iterable[Float[Array | np.ndarray, "_ Y X 3"]], wanted: Mapping[str, Statistic]
) -> tuple[dict[str, PyTree], int]:
    """Everything wanted, by name, of a float encoder with its plan in place, and the number of images.

    Raises UserError for an empty set and a quantised encoder."""
    if encoder.scheme is not None:
        raise UserError(
            f"{encoder.spec.name} is quantised already ({encoder.scheme.name}); calibrate the float encoder"
        )
    totals: dict[str, PyTree] = dict.fromkeys(wanted)
    num_images = 0
    for images in batches:
        images = jnp.asarray(images, encoder.dtype)
        batch = _batch(
            encoder.params.image, images, encoder.plan, spec=encoder.spec.image, wanted=tuple(wanted.items())
        )
        totals = {name: each.add(totals[name], batch[name]) for name, each in wanted.items()}
        num_images += images.shape[0]
    if not num_images:
        raise UserError("calibration needs at least one image, got none")
    return {name: each.result(totals[name]) for name, each in wanted.items()}, num_images


@functools.partial(jax.jit, static_argnames=("spec", "wanted"))
def _batch(
    tower: ImageTower, images: Float[Array, "B Y X 3"], plan: RegisterPlan | None, *, spec: ImageSpec, wanted: Wanted
) -> dict[str, PyTree]:
    collect = {name: functools.partial(each.of_block, protected=spec.protected) for name, each in wanted}
    return image_features(tower, images, spec, plan=plan, collect=collect).collected
