"""Features of folders of pictures and of lists of texts, for search and clustering elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.data.batches import Missing, batches
from regcache_jax.data.dataset import Dataset
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.evaluation.loop import Parallel, extract_labelled, round_up
from regcache_jax.evaluation.rows import check_rows
from regcache_jax.evaluation.zero_shot import encode_ids, text_identity
from regcache_jax.files.identity import content_hash
from regcache_jax.files.paths import write_whole
from regcache_jax.files.places import as_path
from regcache_jax.files.store import Cache, npz_bytes
from regcache_jax.models.folder import Model


class Embedded(NamedTuple):
    """Features of the pictures that could be read, their relative paths and captions, and a message for each of the others."""

    features: Float[np.ndarray, "n E"]
    paths: list[str]
    captions: list[tuple[str, ...]]
    unreadable: list[str]


def embed_pictures(
    model: Model,
    dataset: Dataset,
    batch_size: int,
    *,
    strict: bool = False,
    parallel: Parallel = "jit",
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """Features of all pictures of a dataset, in its order. `strict` raises at the first picture that cannot be read.

    Raises UserError where none can be, for captions that cannot be read, and for features that are not finite."""
    captions = [dataset.captions(index) for index in range(len(dataset))]
    missing = None if strict else Missing(allowed=len(dataset))
    found = extract_labelled(
        encode_image,
        model.encoder,
        batches(dataset, model.preprocess, round_up(batch_size), missing=missing),
        parallel=parallel,
        micro_batch="auto",
        progress=progress,
    )
    check_rows(model.encoder, found, dataset, model.encoder.spec.preprocessing)
    unreadable = [] if missing is None else missing.messages
    if not len(found["place"]):
        raise UserError(f"no picture can be read (of {len(dataset):,}); the first: {unreadable[0]}")
    places = [int(place) for place in found["place"]]
    return Embedded(
        found["features"],
        [dataset[place].name for place in places],
        [captions[place] for place in places],
        unreadable,
    )


def embed_texts(
    model: Model, texts: list[str], batch_size: int = 256, cache: Cache | None = None
) -> Float[np.ndarray, "n E"]:
    """Features of texts, in their order. `cache`: where features of the same text tower and texts may be found."""
    if not texts:
        raise UserError("there is no text to embed; give one a line")
    ids = model.tokenize(texts)

    def make() -> np.ndarray:
        return encode_ids(model.encoder, ids, batch_size)

    made_from = [text_identity(model.encoder), content_hash(ids)]
    return make() if cache is None else cache.get("texts", made_from, make)


def write_embeddings(path: epath.PathLike, embedded: Embedded, texts: Float[np.ndarray, "n E"] | None = None) -> None:
    """Writes an .npz with `features`, `paths` and, where there are any, `captions` (JSON, a list of texts a picture: an array of texts
    would make all as long as the longest) and `text_features`, whole or not at all."""
    path = as_path(path)
    arrays: dict[str, Any] = {"features": embedded.features.astype(np.float32), "paths": np.array(embedded.paths)}
    if any(embedded.captions):
        arrays["captions"] = np.array(json.dumps(embedded.captions))
    if texts is not None:
        arrays["text_features"] = texts.astype(np.float32)
    write_whole(path, npz_bytes(arrays))
