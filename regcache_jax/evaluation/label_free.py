"""The error without labels, by any objective that needs none, on some of a dataset's pictures."""

from __future__ import annotations

import numpy as np

from regcache_jax.core.objective import LabelFree, reads_patches
from regcache_jax.core.outputs import Outputs, image_errors
from regcache_jax.data.dataset import Dataset
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.evaluation.evaluators.dense import patch_features
from regcache_jax.evaluation.job import Encode

MOST_PICTURES = 512
"""Pictures, spread over the set, that are measured: a picture has a hundred patch tokens and more."""


def outputs(encode: Encode, data: Dataset, objective: LabelFree) -> Outputs:
    """What the objective reads of them; `encode` runs an encoder over a dataset."""
    part = data.spread(MOST_PICTURES)
    patches = encode(patch_features, part).features if reads_patches(objective) else None
    return Outputs(encode(encode_image, part).features, patches)


def error(objective: LabelFree, found: Outputs, reference: Outputs) -> float:
    """The mean error over the pictures."""
    return float(np.mean(image_errors(objective, found, reference)))
