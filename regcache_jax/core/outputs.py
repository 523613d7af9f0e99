"""What an encoder gives for some images, and the error of it by an objective."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import LabelFree, Objective, name_of


class Outputs(NamedTuple):
    """What an encoder gives for n images, in float32: the pooled feature as the task uses it (of unit length, or as it is), and the
    patch tokens after the final norm, one for every place (deleted ones are filled in), where the objective reads them."""

    pooled: Float[Array | np.ndarray, "n E"]
    patches: Float[Array | np.ndarray, "n P D"] | None = None

    def of(self, rows: slice | Int[np.ndarray, "k"]) -> Outputs:
        """Those of some images."""
        return jax.tree.map(lambda leaf: leaf[rows], self)

    def on_host(self) -> Outputs:
        """The same as NumPy arrays."""
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), self)


class Answers(NamedTuple):
    """What accuracy needs: the class of each image, and a vector a class."""

    labels: Int[np.ndarray, "n"]
    class_vectors: Float[np.ndarray, "C E"]

    def of(self, rows: slice | Int[np.ndarray, "k"]) -> Answers:
        """Those of some images."""
        return self._replace(labels=self.labels[rows])


Errors: TypeAlias = Float[Array | np.ndarray, "n"]
ErrorFunction: TypeAlias = Callable[[Outputs, Outputs], Float[np.ndarray, "n"]]
"""Of the float encoder's outputs and the quantised one's: an error for each image."""


def joined(parts: list[Outputs]) -> Outputs:
    """Outputs of consecutive images."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def feature_errors(features: Float[np.ndarray, "n E"], reference: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n"]:
    """The error of each image's pooled feature, in float64: squared distance over the squared length of the float one (for unit features
    2 - 2 cosine)."""
    return np.asarray(relative_errors(features.astype(np.float64), reference.astype(np.float64)))


def relative_errors(found: Float[Array | np.ndarray, "n *R"], reference: Float[Array | np.ndarray, "n *R"]) -> Errors:
    """Squared distance over squared length, each summed over all axes but the first. Of patch tokens these are an image's means over
    its places: a place whose float token is short does not outweigh the others."""
    axes = tuple(range(1, reference.ndim))
    return ((found - reference) ** 2).sum(axis=axes) / (reference**2).sum(axis=axes)


def label_free_errors(objective: LabelFree, found: Outputs, reference: Outputs) -> Errors:
    """The error of each image by one of the words that need no labels, in the arrays' own dtype (a gradient may go through)."""
    errors = []
    if objective in ("pooled", "both"):
        errors.append(relative_errors(found.pooled, reference.pooled))
    if objective in ("patches", "both"):
        assert found.patches is not None and reference.patches is not None
        errors.append(relative_errors(found.patches, reference.patches))
    return sum(errors[1:], errors[0]) / len(errors)


def image_errors(
    objective: Objective, found: Outputs, reference: Outputs, answers: Answers | None = None
) -> Float[np.ndarray, "n"]:
    """The error of each image, in float64. Accuracy needs `answers`: 1 for a wrong top-1 and 0 for a right one.

    Raises UserError for a function that does not give one finite number an image."""
    if callable(objective):
        errors = np.asarray(objective(reference, found), np.float64)
        if errors.shape != (len(reference.pooled),) or not np.isfinite(errors).all():
            raise UserError(
                f"the objective {name_of(objective)} must give one finite error an image, [{len(reference.pooled)}], "
                f"got {list(errors.shape)}"
            )
        return errors
    if objective == "accuracy":
        assert answers is not None
        scores = np.asarray(found.pooled, np.float64) @ answers.class_vectors.T
        return (np.argmax(scores, axis=1) != answers.labels).astype(np.float64)
    wide = [jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), each) for each in (found, reference)]
    return np.asarray(label_free_errors(typing.cast(LabelFree, objective), *wide))
