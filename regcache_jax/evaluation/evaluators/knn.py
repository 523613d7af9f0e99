"""k-nearest-neighbour classification as DINOv2 does it: for encoders without a text tower.

The k training pictures of largest cosine vote for their classes, each with weight exp(cosine / temperature).
Source: the protocol of DINO (arXiv 2104.14294, appendix) and DINOv2 (arXiv 2304.07193, section 7.1): k = 20, temperature 0.07.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.evaluation.classes import join_classes
from regcache_jax.evaluation.evaluators.labelled import classified, for_all_classes, trained
from regcache_jax.evaluation.job import Found, Job, Options
from regcache_jax.evaluation.metrics import unit

NEIGHBOURS, TEMPERATURE = Options().neighbours, Options().temperature


def run(job: Job) -> Found:
    """Accuracy by the votes of the training pictures, whose features the same encoder makes."""
    assert job.bank is not None
    voters, rows = job.encode(encode_image, job.bank), job.encode(encode_image, job.data)
    joined = join_classes(job.bank, voters, job.data, rows)
    own = joined.training >= 0
    bank = make_bank(
        voters.features[own], joined.training[own], joined.num_trained,
        neighbours=job.options.neighbours, temperature=job.options.temperature,
    )  # fmt: skip
    score = for_all_classes(bank.scores, joined)
    return trained(classified(rows, joined.tested, score, job.reference), joined, voters)


class Bank(NamedTuple):
    """Training features of unit length with their classes: what votes."""

    features: Float[Array, "m E"]
    classes: Int[Array, "m"]
    num_classes: int
    neighbours: int
    temperature: float

    def scores(self, features: Float[np.ndarray, "n E"], rows: int = 1024) -> Float[np.ndarray, "n C"]:
        """Votes for every class. Features need not have unit length. `rows`: pictures compared at a time. Ties between
        neighbours go to the earlier one."""
        votes = [
            np.asarray(
                _votes(
                    jnp.asarray(part), self.features, self.classes, self.neighbours, self.num_classes, self.temperature
                )
            )
            for first in range(0, len(features), rows)
            for part in [unit(features[first : first + rows])]
        ]
        return np.concatenate(votes)


def make_bank(
    features: Float[np.ndarray, "m E"],
    labels: Int[np.ndarray, "m"],
    num_classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Bank:
    """The bank of training features and their classes.

    Raises UserError for fewer than `neighbours` pictures and for unlabelled ones."""
    if labels.min(initial=-1 if not len(labels) else 0) < 0:
        raise UserError("k-NN needs labelled training pictures (one folder a class)")
    if len(features) < neighbours:
        raise UserError(f"k-NN with k = {neighbours} needs as many training pictures, got {len(features)}")
    return Bank(jnp.asarray(unit(features)), jnp.asarray(labels), num_classes, neighbours, temperature)


@jax.jit(static_argnums=(3, 4, 5))
def _votes(
    features: Float[Array, "B E"],
    bank: Float[Array, "m E"],
    classes: Int[Array, "m"],
    neighbours: int,
    num_classes: int,
    temperature: float,
) -> Float[Array, "B C"]:
    cosines, nearest = jax.lax.top_k(jnp.matmul(features, bank.T, precision="highest"), neighbours)
    weights = jnp.exp((cosines - cosines[:, :1]) / temperature)  # the nearest weighs 1, so that nothing overflows
    return jnp.einsum("bk,bkc->bc", weights, jax.nn.one_hot(classes[nearest], num_classes, dtype=jnp.float32))
