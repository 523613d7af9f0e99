"""Embedding inside a pipeline of Ray Data: one actor a host loads the encoder once and takes batch after batch.

    import ray
    from regcache_jax.embedding.on_ray import Embedder

    pictures = ray.data.read_binary_files("gs://bucket/pictures", include_paths=True)
    rows = pictures.map_batches(
        Embedder, fn_constructor_kwargs={"model": "gs://bucket/MODEL8"}, batch_size=1024,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=64), resources={"TPU": 4},
    )
    rows.write_parquet("gs://bucket/features")

Ray is the caller: nothing here imports it. It hands out work, starts actors again that were lost, and writes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.data.batches import Missing, Share, batches
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.embedding.embed import encode_for, shape_of_row
from regcache_jax.embedding.options import Features
from regcache_jax.evaluation.loop import Loop, encoding, round_up
from regcache_jax.evaluation.rows import check_rows
from regcache_jax.models.folder import load

NAMES = ("path", "image_path", "__key__", "key")
"""Columns that name a picture in messages; its number in the batch, where there is none."""


class Embedder:
    """From batches with a column of pictures (files as bytes, uint8 arrays, or paths) to the same without it, with `embedding` [n, ...] in
    float32 and `error`.

    `batch_size`: pictures a step of this process's devices; Ray's own is best a multiple of it. A picture that cannot be read keeps its
    row: `error` says why, and its embedding is NaN. Raises UserError for a folder that is no encoder, for one that has no such features,
    for a column that is not there, and for features that are not finite."""

    def __init__(
        self, model: epath.PathLike, *, column: str = "bytes", features: Features = "pooled", batch_size: int = 64
    ) -> None:
        self._model = load(model)
        self._column, self._batch_size = column, round_up(batch_size)
        encode = encode_for(features, self._model.encoder)
        self._shape = shape_of_row(encode, self._model.encoder)
        self._loop = Loop(encoding(encode), self._model.encoder, micro_batch="auto", alone=True)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One batch of Ray's, in its NumPy format."""
        if self._column not in batch:
            raise UserError(f"there is no column {self._column} of pictures; there are {', '.join(batch)}")
        pictures = batch[self._column]
        names = next((batch[name] for name in NAMES if name in batch), range(len(pictures)))

        def picture(row: int) -> Example:
            if pictures[row] is None:
                raise UserError(f"{names[row]} holds no picture: {self._column} is empty")
            return Example(pictures[row], None, str(names[row]))

        dataset = Dataset(self._column, "all", len(pictures), picture)
        missing = Missing(len(pictures))
        features = np.full((len(pictures), *self._shape), np.nan, np.float32)
        steps = batches(dataset, self._model.preprocess, self._batch_size, share=Share(0, 1), missing=missing)
        for rows in self._loop.rows(steps):
            check_rows(self._model.encoder, rows, dataset, self._model.encoder.spec.preprocessing)
            features[rows["place"]] = rows["features"]
        errors = [missing.faults.get(row, "") for row in range(len(pictures))]
        kept = {name: column for name, column in batch.items() if name != self._column}
        return {**kept, "embedding": features, "error": np.array(errors, object)}
