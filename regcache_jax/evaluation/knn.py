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

NEIGHBOURS, TEMPERATURE = 20, 0.07


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
            for part in [_unit(features[first : first + rows])]
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
    if len(features) < neighbours:
        raise UserError(f"k-NN with k = {neighbours} needs as many training pictures, got {len(features)}")
    if labels.min() < 0:
        raise UserError("k-NN needs labelled training pictures (one folder a class)")
    return Bank(jnp.asarray(_unit(features)), jnp.asarray(labels), num_classes, neighbours, temperature)


def knn_scores(
    features: Float[np.ndarray, "n E"],
    bank: Float[np.ndarray, "m E"],
    labels: Int[np.ndarray, "m"],
    num_classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    rows: int = 1024,
) -> Float[np.ndarray, "n C"]:
    """Votes for every class, for pictures with `features`, from the `bank` of training features and their classes."""
    kept = make_bank(bank, labels, num_classes, neighbours=neighbours, temperature=temperature)
    return kept.scores(features, rows)


def _unit(features: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n E"]:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


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
