"""How near every patch is to its float self: what a language model that reads a quantised tower's patches would notice.

A pooled feature averages; a language model reads each place. So beside the mean stands the worst percentile, and where it lies.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec, ImageSpec
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.encoders.sheets import grids_of
from regcache_jax.encoders.taps import encode_patches
from regcache_jax.evaluation.job import Found, Job
from regcache_jax.evaluation.measure import Measured
from regcache_jax.evaluation.metrics import compare_features

BYTES = 1 << 30
"""Of patch features that are kept, about: pictures beyond are left out, evenly."""
PERCENTILE = 99
MAPS = 4
"""Pictures whose errors are given place by place."""


def run(job: Job) -> Found:
    """Cosine and error of the patch features (those a language model takes) to the float encoder's, which alone has nothing to show.

    `patch_error`: mean over all patches of |found - float| / |float|; `patch_error_p99`: what one patch in a hundred exceeds;
    `patch_cosine`: the mean cosine. Deleted patches count as they are filled in, lines of sheets without a patch do not.

    Raises UserError for an encoder of another shape."""
    spec = job.encoder.spec.image
    data = job.data.spread(most_pictures(spec))
    rows = job.encode(encode_patches, data)
    notes = [f"patches of {len(data)} of {len(job.data)} pictures, evenly spread"] if len(data) < len(job.data) else []
    patches = rows.features.reshape(-1, rows.features.shape[-1])
    if spec.max_patches is not None:
        patches = patches[patches.any(axis=1)]  # lines without a patch are zeros
    nothing = np.zeros(len(patches), np.int32)  # no classes: patches say nothing
    if job.reference is None:
        return Found(Measured({}, patches, nothing), len(rows.places), rows.missing, notes)
    if job.reference.features.shape != patches.shape:
        raise UserError(
            f"this encoder gives {list(patches.shape)} patches, the first one {list(job.reference.features.shape)}: they cannot be compared"
        )
    errors = patch_errors(patches, job.reference.features)
    metrics = {
        "patch_error": float(errors.mean()),
        f"patch_error_p{PERCENTILE}": float(np.percentile(errors, PERCENTILE)),
        "patch_cosine": compare_features(patches, job.reference.features)["cosine"],
    }
    examples = [data[int(place)] for place in rows.places[:MAPS]]
    grids = [grid_of_picture(example.image, job.encoder.spec) for example in examples]
    more = {"patch_error_maps": error_maps(errors, [example.name for example in examples], grids)}
    return Found(Measured(metrics, patches, nothing), len(rows.places), rows.missing, notes, more)


def most_pictures(spec: ImageSpec) -> int:
    """Pictures whose patches are kept at most."""
    return max(1, BYTES // (spec.num_patches * spec.blocks.width * 4))


def patch_errors(found: Float[np.ndarray, "m D"], reference: Float[np.ndarray, "m D"]) -> Float[np.ndarray, "m"]:
    """Length of the difference over the length of the float patch (a float patch of zeros counts as of length one)."""
    length = np.linalg.norm(reference, axis=1)
    return np.linalg.norm(found - reference, axis=1) / np.where(length > 0, length, 1.0)


def grid_of_picture(picture: Any, spec: EncoderSpec) -> tuple[int, int]:
    """Rows and columns of a picture's patches."""
    if spec.image.max_patches is None:
        return spec.image.grid, spec.image.grid
    found = grids_of(jnp.asarray(preprocess(picture, spec.preprocessing)[None]))
    return int(found.rows[0, 0]), int(found.columns[0, 0])


def error_maps(errors: Float[np.ndarray, "m"], names: list[str], grids: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """The errors of the first pictures place by place, four digits each: what a page draws over them."""
    ends = np.cumsum([rows * columns for rows, columns in grids])
    own = [part.reshape(grid) for part, grid in zip(np.split(errors, ends)[:-1], grids, strict=True)]
    return [
        {"picture": name, "errors": [[float(f"{error:.4g}") for error in row] for row in each]}
        for name, each in zip(names, own, strict=True)
    ]
