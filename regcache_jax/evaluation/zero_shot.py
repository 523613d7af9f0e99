"""What a text tower makes of words: features of texts, and class vectors as open_clip and CLIP_benchmark make them of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from regcache_jax.data.cut import cut
from regcache_jax.encoders.encoder import Encoder, encode_text
from regcache_jax.encoders.finite import check_texts
from regcache_jax.evaluation.metrics import unit
from regcache_jax.files.identity import content_hash
from regcache_jax.files.store import Cache


def class_vectors(
    encoder: Encoder,
    tokenize: Callable[[list[str]], np.ndarray],
    classnames: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
    cache: Cache | None = None,
) -> Float[np.ndarray, "C E"]:
    """One unit vector a class: normalise each prompt's feature, average over templates, normalise. `cache`: where vectors of
    the same text tower and prompts may be found."""
    prompts = [template.replace("{c}", name) for name in classnames for template in templates]
    ids = tokenize(prompts)

    def make() -> np.ndarray:
        return average_prompts(encode_ids(encoder, ids, batch_size), len(classnames))

    made_from = [text_identity(encoder), content_hash(ids), len(templates)]
    return make() if cache is None else cache.get("class_vectors", made_from, make)


def average_prompts(features: Float[np.ndarray, "n E"], num_classes: int) -> Float[np.ndarray, "C E"]:
    """Class vectors from unit features of equally many prompts a class, one class after the other."""
    return unit(features.reshape(num_classes, -1, features.shape[1]).mean(axis=1))


def encode_ids(encoder: Encoder, ids: Int[np.ndarray, "n T"], batch_size: int = 256) -> Float[np.ndarray, "n E"]:
    """Unit features of texts, in batches of one shape. Raises UserError where they are not finite."""
    encode = jax.jit(encode_text)
    found = np.concatenate([np.asarray(encode(encoder, part))[real] for part, real in cut(ids, batch_size)])
    check_texts(encoder, found)
    return found


def text_identity(encoder: Encoder) -> list[Any]:
    """What the features of token ids depend on: the text tower's spec, scheme and weights."""
    scheme = None if encoder.scheme is None else encoder.scheme.of_part("text")
    spec = encoder.spec.to_json()["text"]
    return [spec, None if scheme is None else scheme.to_json(), content_hash(encoder.params.text)]
