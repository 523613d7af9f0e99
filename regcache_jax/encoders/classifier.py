"""The linear classifier that some encoders were published with: scores of classes from the pooled feature."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.precision import float32_products
from regcache_jax.core.sites import Dense
from regcache_jax.encoders.encoder import Encoder, encode


def classifier_of(encoder: Encoder) -> Dense:
    """The classifier. Raises UserError where the encoder has none."""
    if encoder.params.classifier is None:
        raise UserError(
            f"{encoder.spec.name} has no classifier of its own; a checkpoint that is published with one keeps it (timm's and Hugging "
            "Face's ViTs), others are measured by zeroshot_classification, knn or linear_probe"
        )
    return encoder.params.classifier


@float32_products()
def class_scores(classifier: Dense, features: Float[Array | np.ndarray, "n E"]) -> Float[Array, "n C"]:
    """Logits of pooled features as the encoder gives them, in float32."""
    assert classifier.bias is not None
    kernel, bias = classifier.floats.astype(jnp.float32), classifier.bias.astype(jnp.float32)
    return jnp.asarray(features, jnp.float32) @ kernel + bias


def classify(encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"]) -> Float[Array, "B C"]:
    """Float32 logits of preprocessed images by the encoder's own classifier; `Model.labels` says what its classes are called.

    Raises UserError where the encoder has none."""
    return class_scores(classifier_of(encoder), encode(encoder, images).features)
