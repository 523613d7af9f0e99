"""What accuracy needs of a dataset: the classes of its pictures, and a vector a class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from regcache_jax.cli.arguments import WordArgs

if TYPE_CHECKING:
    import numpy as np

    from regcache_jax.data import Dataset
    from regcache_jax.models.folder import Model


def class_vectors_of(model: Model, data: Dataset, words: WordArgs) -> np.ndarray:
    """A unit vector a class, for what is measured by top-1."""
    from regcache_jax.data.prompts import class_names
    from regcache_jax.data.prompts import templates as prompt_templates
    from regcache_jax.evaluation.zero_shot import class_vectors

    names, prompts = class_names(data, words.classnames), prompt_templates(data, words.templates)
    return class_vectors(model.encoder, model.tokenize, names.texts, prompts.texts)


def labels_of(data: Dataset, indices: Iterable[int]) -> np.ndarray:
    """The classes of some examples. Raises UserError where one has none."""
    import numpy as np

    from regcache_jax.core.errors import UserError

    labels = [data[int(index)].label for index in indices]
    if any(label is None for label in labels):
        raise UserError(f"{data.name} ({data.split}) has pictures without a class, and accuracy needs one for each")
    return np.array(labels)
