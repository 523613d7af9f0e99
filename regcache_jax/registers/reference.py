"""The reference set: preprocessed images, checked once at the edge and cut into batches of one shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from jaxtyping import Array, Bool, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.data.cut import cut

Batches: TypeAlias = Iterable[tuple[Float[Array | np.ndarray, "B Y X 3"], Bool[np.ndarray, "B"]]]
"""Batches of images with a mask: rows with mask False only fill a batch up."""

Images: TypeAlias = Float[np.ndarray, "n Y X 3"] | Batches
"""A set that fits in memory as one array, or one that does not as batches with masks."""


def check_images(images: Float[np.ndarray, "n Y X 3"], spec: EncoderSpec) -> None:
    """Raises UserError for an empty set, another shape than the encoder takes, and values that are not finite."""
    if images.ndim != 4 or images.shape[1:] != spec.image.picture_shape:
        wanted = ", ".join(map(str, spec.image.picture_shape))
        raise UserError(f"{spec.name} takes preprocessed images of shape [n, {wanted}], got {list(images.shape)}")
    if len(images) == 0:
        raise UserError("the reference set is empty; give at least one image")
    for number, image in enumerate(images):
        if not np.isfinite(image).all():
            raise UserError(f"image {number} of the reference set holds NaN or infinity after preprocessing")


def check_varied(images: Float[np.ndarray, "n Y X 3"]) -> None:
    """Raises UserError for one image, or images that are all the same (all black, say): nothing could be learned from them."""
    if len(images) < 2:
        raise UserError("a search needs at least 2 images to tell a gain from chance, got 1; 256 or more are sensible")
    if all(np.array_equal(image, images[0]) for image in images[1:]):
        raise UserError(
            f"all {len(images)} reference images are the same; are the files readable pictures? A search needs varied ones"
        )


def as_batches(images: Images, spec: EncoderSpec, size: int) -> Batches:
    """An array checked and cut into batches; batches as they are."""
    if not isinstance(images, np.ndarray) and not hasattr(images, "shape"):
        return images
    array = np.asarray(images)
    check_images(array, spec)
    return cut(array, size)
