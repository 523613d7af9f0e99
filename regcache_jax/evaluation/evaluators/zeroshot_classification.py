"""Zero-shot classification: a picture is of the class whose vector, made of prompts, is nearest."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from regcache_jax.encoders.encoder import encode_image
from regcache_jax.evaluation.evaluators.labelled import classified
from regcache_jax.evaluation.job import Found, Job
from regcache_jax.evaluation.zero_shot import class_vectors


def run(job: Job) -> Found:
    """Accuracy by the class vectors of the model's text tower and the prompts."""
    assert job.prompts is not None
    words = job.prompts.classnames, job.prompts.templates
    vectors = class_vectors(job.model.encoder, job.model.tokenize, *words, cache=job.cache)
    rows = job.encode(encode_image, job.data)

    def cosines(features: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n C"]:
        return features @ vectors.T

    return classified(rows, rows.labels, cosines, job.reference)
