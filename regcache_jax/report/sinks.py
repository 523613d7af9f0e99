"""Sink maps: where in a few example pictures the large tokens sit, without and with registers."""

from __future__ import annotations

import base64
import functools
import io
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import ImageSpec
from regcache_jax.data import Dataset
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.preprocess import open_picture
from regcache_jax.encoders.sheets import grids_of
from regcache_jax.encoders.vision import image_features
from regcache_jax.models.folder import Model
from regcache_jax.ops.delete import linf_norm

PICTURES = 6
THUMBNAIL = 128


@functools.partial(jax.jit, static_argnames=("spec",))
def _norms(
    tower: ImageTower, images: Float[Array, "B Y X 3"], plan: RegisterPlan | None, *, spec: ImageSpec
) -> dict[str, Float[Array, "L B N"]]:
    return image_features(
        tower, images, spec, plan=plan, collect={"norm": lambda trace: linf_norm(trace.hidden)}
    ).collected


def example_numbers(dataset: Dataset) -> list[int]:
    """A few pictures, spread over a dataset."""
    return np.linspace(0, len(dataset) - 1, min(PICTURES, len(dataset))).astype(int).tolist()


def sink_maps(plain: Encoder, registered: Encoder, dataset: Dataset, model: Model) -> list[dict[str, Any]]:
    """For a few pictures spread over a dataset: a thumbnail (PNG, base64) and the patches' norms at the input of the block
    where they are largest, as rows of the grid, without and with registers."""
    examples = [dataset[number] for number in example_numbers(dataset)]
    images = jnp.asarray(np.stack([model.preprocess(example.image) for example in examples]), plain.dtype)
    spec = plain.spec.image
    before, after = (
        np.asarray(_norms(encoder.params.image, images, encoder.plan, spec=spec)["norm"])[:, :, spec.num_protected :]
        for encoder in (plain, registered)
    )
    block = int(np.argmax(before.max(axis=(1, 2))))
    sides = [(spec.grid, spec.grid)] * len(examples)
    if spec.max_patches is not None:
        found = grids_of(images)
        sides = [(int(rows), int(columns)) for rows, columns in zip(found.rows[:, 0], found.columns[:, 0], strict=True)]
    grids = [
        [own[: math.prod(side)].reshape(side).round(2).tolist() for own, side in zip(norms[block], sides, strict=True)]
        for norms in (before, after)
    ]
    return [
        {"name": example.name, "block": block, "thumbnail": thumbnail(example.image), "plain": a, "registers": b}
        for example, a, b in zip(examples, *grids, strict=True)
    ]


def thumbnail(image: Any, side: int = THUMBNAIL) -> str:
    """A picture, at most so many pixels wide and high, as a PNG in base64."""
    picture = open_picture(image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
