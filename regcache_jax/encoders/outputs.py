"""What objectives and dense tasks read of an image tower: the pooled feature as the task uses it, and the patch tokens of every place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.outputs import Outputs
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import EncoderSpec, ImageSpec
from regcache_jax.encoders.encoder import Encoder, encode, normalize
from regcache_jax.encoders.pooling import pool
from regcache_jax.encoders.sheets import grids_of
from regcache_jax.encoders.vision import ImageOutput
from regcache_jax.ops.delete import fill_absent, fill_deleted, fill_lines


def patch_tokens(
    output: ImageOutput, spec: ImageSpec, images: Float[Array, "B Y X 3"] | None = None
) -> Float[Array, "B P D"]:
    """The patch tokens after the final norm, in float32, one for every place of the grid: deleted ones are filled in, whether they are
    marked (search form) or gone (serving form). Of a sheet: one for every line, zeros where there is no patch. Raises UserError for
    sheets of which patches were deleted where the `images` are not given, which say who their neighbours were."""
    patches = output.tokens[:, spec.num_protected :].astype(jnp.float32)
    if spec.max_patches is not None:
        assert output.present is not None
        if images is not None:
            return _lines(patches, output.present, output.kept, images)
        if output.kept is not None:
            raise UserError(
                "patches of pictures of any shape (NaFlex) are read without deletion; use a plan that deletes nothing"
            )
        return jnp.where(output.present[..., None], patches, 0)
    if output.kept is not None:
        return fill_deleted(patches, output.kept[:, spec.num_protected :] - spec.num_protected, spec.grid)
    if output.present is not None:
        return fill_absent(patches, output.present[:, spec.num_protected :], spec.grid)
    return patches


def _lines(
    patches: Float[Array, "B M D"],
    present: Bool[Array, "B M"],
    places: Int[Array, "B M"] | None,
    images: Float[Array, "B N C 3"],
) -> Float[Array, "B N D"]:
    """Patches on the lines of their sheets, those that are gone filled in."""
    grids = grids_of(images)
    if places is not None:  # -1: no token
        place = jax.nn.one_hot(places, images.shape[1], dtype=jnp.float32)
        patches, present = jnp.einsum("bmn,bmd->bnd", place, patches), jnp.sum(place, axis=1) > 0
    return fill_lines(patches, present, grids.there, jnp.stack([grids.row, grids.column]))


def outputs_of(output: ImageOutput, spec: EncoderSpec, patches: bool) -> Outputs:
    """What an objective reads, with or without the patch tokens."""
    pooled = normalize(output.features) if spec.normalize else output.features.astype(jnp.float32)
    return Outputs(pooled, patch_tokens(output, spec.image) if patches else None)


def pooled_outputs(
    tower: ImageTower,
    hidden: Float[Array, "B N D"],
    spec: EncoderSpec,
    patches: bool,
    present: Bool[Array, "B N"] | None = None,
) -> Outputs:
    """The same of the states that leave the last block; `present`: the tokens that are not deleted."""
    features, tokens = pool(tower, hidden, spec.image, present)
    return outputs_of(ImageOutput(features, tokens, present, None, {}), spec, patches)


def encode_outputs(encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"], patches: bool) -> Outputs:
    """What an objective reads of preprocessed images, by the encoder's own kernels and plan."""
    return outputs_of(encode(encoder, images), encoder.spec, patches)
