"""Figures of one token an image, the largest or the median patch: do the images agree on a direction, does a channel stand out?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def mean_direction(vectors: Float[np.ndarray, "L n D"]) -> Float[np.ndarray, "L D"]:
    """Mean of unit vectors, at unit length."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    mean = unit.mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def mean_cosine(vectors: Float[np.ndarray, "L n D"]) -> Float[np.ndarray, "L"]:
    """Mean cosine between the vectors of different images (1 where there is one image)."""
    count = vectors.shape[1]
    if count < 2:
        return np.ones(len(vectors))
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return (np.square(unit.sum(axis=1)).sum(axis=-1) - count) / (count * (count - 1))


def typical_channels(vectors: Float[np.ndarray, "L n C"]) -> Float[np.ndarray, "L C"]:
    """Mean magnitude of every channel of ordinary tokens."""
    return np.abs(vectors).mean(axis=1)


def channel_ratio(vectors: Float[np.ndarray, "L n C"]) -> Float[np.ndarray, "L"]:
    """How far the largest channel of ordinary tokens stands above the 95th percentile of channels."""
    typical = typical_channels(vectors)
    return typical.max(axis=-1) / np.maximum(np.percentile(typical, 95, axis=-1), 1e-12)
