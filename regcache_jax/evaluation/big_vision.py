"""Both ways between this package and big_vision's trainer: an evaluator of its shape, and int8 encoders as its `predict_fn`.

big_vision looks for an evaluator among its own modules, so one line there makes it ours (docs/big_vision.md has the config):

    from regcache_jax.evaluation.big_vision import API, Evaluator

A `predict_fn` of big_vision takes `(train_state, batch)` and returns `(zimg, ztxt, out)`; what `batch` does not hold (`image`,
or `labels`, which are token ids) is None.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.data import batches, open_dataset
from regcache_jax.data.cut import filled
from regcache_jax.data.dataset import check_label
from regcache_jax.encoders.encoder import Encoder, encode_image, encode_text
from regcache_jax.encoders.tokenizers import load_tokenizer
from regcache_jax.evaluation.metrics import count_hits, metrics_from_counts
from regcache_jax.evaluation.protocol import PROTOCOLS
from regcache_jax.evaluation.zero_shot import average_prompts
from regcache_jax.files.places import as_path
from regcache_jax.models.folder import read_description

API = "jit"
"""What big_vision's trainer asks of a module before it makes its `Evaluator`: that it takes `devices`."""

PredictFn = Callable[[Any, dict[str, Any]], tuple[Any, ...]]


def state_of(encoder: Encoder, devices: Sequence[Any]) -> dict[str, Any]:
    """A `train_state` for `predict`: the encoder, whole on each of the devices, as big_vision's evaluators want a state to be."""
    everywhere = NamedSharding(Mesh(np.asarray(devices).reshape(-1), ("data",)), PartitionSpec())

    def place(leaf: Array) -> Array:
        own = np.asarray(leaf)
        return jax.make_array_from_callback(own.shape, everywhere, own.__getitem__)

    return {"params": jax.tree.map(place, encoder)}


def predict(train_state: dict[str, Any], batch: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """An encoder of ours, float or quantised, as a `predict_fn`; `train_state` is that of `state_of`.

    `batch` holds `image [B, Y, X, 3]`, preprocessed, or `labels [B, T]`, padded ids. `out` has big_vision's names: the features
    again, and the temperature and offset of the scores where the encoder has them."""
    encoder: Encoder = train_state["params"]
    image = encode_image(encoder, batch["image"]) if "image" in batch else None
    text = encode_text(encoder, batch["labels"]) if "labels" in batch else None
    out = {name: found for name, found in (("img/normalized", image), ("txt/normalized", text)) if found is not None}
    if encoder.params.logit_scale is not None:
        out["t"] = jnp.exp(encoder.params.logit_scale.astype(jnp.float32))
    if encoder.params.logit_bias is not None:
        out["b"] = encoder.params.logit_bias.astype(jnp.float32)
    return image, text, out


class Asked(NamedTuple):
    """What else a config of big_vision may say of an evaluator of ours, each as for `regcache evaluate`."""

    data_dir: str | None = None
    split: str | None = None
    limit: int | None = None
    protocol: str = "big_vision"
    classnames: str | None = None
    templates: str | None = None


class Evaluator:
    """Zero-shot accuracy of whatever `predict_fn` computes, on any dataset of ours, by any of our protocols.

    `run` yields `NAME_accuracy`, `NAME_acc5` (from five classes on) and `NAME_mean_per_class_recall`, as fractions."""

    def __init__(
        self,
        predict_fn: PredictFn,
        *,
        batch_size: int,
        devices: Sequence[Any],
        model: epath.PathLike,
        dataset: str,
        **asked: Any,
    ) -> None:
        """`batch_size` is that of all `devices` together, as big_vision counts. `model`: a model folder, of which preprocessing
        and tokenizer are read, not the weights. `asked`: fields of `Asked`.

        Raises UserError for what is unknown, a batch that the devices cannot share, and a model without words."""
        data_dir, split, limit, protocol, classnames, templates = Asked(**asked)
        if protocol not in PROTOCOLS:
            raise UserError(f"unknown protocol {protocol!r}; protocols are {', '.join(PROTOCOLS)}")
        flat = np.asarray(devices).reshape(-1)
        if batch_size % flat.size:
            raise UserError(f"batch_size {batch_size} does not divide over {flat.size} devices")
        spec = EncoderSpec.from_json(read_description(model)["spec"])
        if spec.tokenization is None:
            raise UserError(f"{spec.name} reads no text; zero-shot evaluation needs a text tower")
        self.data = open_dataset(dataset, data_dir, split, limit)
        self.preprocess = PROTOCOLS[protocol].preprocess(spec.preprocessing)
        self.prompts = PROTOCOLS[protocol].prompts(self.data, classnames, templates)
        self.batch_size, self.name = batch_size, dataset
        texts = [prompt.replace("{c}", name) for name in self.prompts.classnames for prompt in self.prompts.templates]
        self._ids = load_tokenizer(spec.tokenization, as_path(model))(texts)
        mesh = Mesh(flat, ("data",))
        self._rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        self._embed = jax.jit(functools.partial(_embed, predict_fn), out_shardings=everywhere)
        self._count = jax.jit(functools.partial(_count, predict_fn), out_shardings=everywhere)

    def run(self, train_state: Any) -> Iterator[tuple[str, float]]:
        """Evaluates a state of training (or that of `state_of`, for `predict`) and yields names and values."""
        vectors = self.class_vectors(train_state)
        totals: dict[str, np.ndarray] = {}
        for batch in batches(self.data, self.preprocess, self.batch_size // jax.process_count()):
            check_label(int(batch.label.max(initial=0)), len(self.prompts.classnames), f"an example of {self.name}")
            placed = jax.tree.map(functools.partial(jax.make_array_from_process_local_data, self._rows), batch)
            counts = jax.device_get(self._count(train_state, vectors, placed.image, placed.label, placed.mask))
            totals = {name: count + totals.get(name, 0) for name, count in counts.items()}
        found = metrics_from_counts(totals)
        found["accuracy"] = found.pop("acc1")
        for name, value in sorted(found.items()):
            yield f"{self.name}_{name}", value

    def class_vectors(self, train_state: Any) -> Float[np.ndarray, "C E"]:
        """One unit vector a class, from the text tower as it is now."""
        size, count = self.batch_size, len(self._ids)
        found = []
        for first in range(0, count, size):
            part = filled(self._ids[first : first + size], size)
            ids = jax.make_array_from_callback(part.shape, self._rows, part.__getitem__)
            found.append(np.asarray(self._embed(train_state, ids).addressable_data(0)))
        return average_prompts(np.concatenate(found)[:count], len(self.prompts.classnames))


def _embed(predict_fn: PredictFn, train_state: Any, ids: Int[Array, "B T"]) -> Float[Array, "B E"]:
    return predict_fn(train_state, {"labels": ids})[1].astype(jnp.float32)


def _count(
    predict_fn: PredictFn, train_state: Any, vectors: Array, images: Array, labels: Array, mask: Array
) -> dict[str, Array]:
    features = predict_fn(train_state, {"image": images})[0].astype(jnp.float32)
    return count_hits(jnp.matmul(features, vectors.T, precision="highest"), labels, mask)
