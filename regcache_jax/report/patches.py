"""How near the patches of integer encoders are to their float selves: over some pictures, and place by place in a few of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from regcache_jax.data import Dataset
from regcache_jax.data.cut import in_batches
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.taps import encode_patches
from regcache_jax.evaluation.evaluators.tower import (
    PERCENTILE,
    error_maps,
    grid_of_picture,
    most_pictures,
    patch_errors,
)
from regcache_jax.models.folder import Model
from regcache_jax.report.sinks import example_numbers

PICTURES = 64
"""Pictures that mean and percentile are of."""
BATCH = 16


def patch_figures(exact: Encoder, rounded: dict[str, Encoder], dataset: Dataset, model: Model) -> dict[str, Any]:
    """Errors of the patches of some encoders to those of the float one: mean and worst percentile over pictures spread over a dataset,
    and maps of the pictures of the sink maps."""
    spec = exact.spec
    spread = dataset.spread(min(PICTURES, most_pictures(spec.image)))
    measured = [spread[number] for number in range(len(spread))]
    examples = [dataset[number] for number in example_numbers(dataset)]
    sets = [[model.preprocess(each.image) for each in chosen] for chosen in (measured, examples)]
    grids = [grid_of_picture(each.image, spec) for each in examples]
    known = [_patches(exact, np.stack(images)) for images in sets]
    rows = {}
    for name, encoder in rounded.items():
        errors, shown = (
            patch_errors(_patches(encoder, np.stack(images)), own) for images, own in zip(sets, known, strict=True)
        )
        maps = error_maps(shown, [each.name for each in examples], grids)
        worst = float(np.percentile(errors, PERCENTILE))
        rows[name] = {"mean": float(errors.mean()), "worst": worst, "maps": [each["errors"] for each in maps]}
    return {"pictures": len(measured), "rows": rows}


def _patches(encoder: Encoder, images: Float[np.ndarray, "n Y X 3"]) -> Float[np.ndarray, "m D"]:
    """The patches of all pictures, one behind the other; lines of sheets without one are left out."""
    run = jax.jit(encode_patches)
    found = np.concatenate([np.asarray(run(encoder, batch)) for batch in in_batches(images, BATCH)])[: len(images)]
    patches = found.reshape(-1, found.shape[-1])
    return patches[patches.any(axis=1)] if encoder.spec.image.max_patches is not None else patches
