"""What the stages of a config work with: encoder, data, words. Each is loaded once, when it is first needed."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.core.observer import Observer
from regcache_jax.data import Dataset, load_images, open_dataset
from regcache_jax.data.batches import dullness
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.evaluation.protocol import PROTOCOLS, Prompts
from regcache_jax.evaluation.zero_shot import class_vectors
from regcache_jax.files.identity import fingerprint
from regcache_jax.files.places import as_path
from regcache_jax.files.store import Cache
from regcache_jax.files.workdir import Json, Workdir, listing
from regcache_jax.models import folder as checkpoints
from regcache_jax.pipeline.config import Pictures, RunConfig


class Material:
    """A config's encoder, data and words, and the work folder they are used in."""

    def __init__(self, config: RunConfig, workdir: epath.PathLike, observer: Observer) -> None:
        self.config, self.observer = config, observer
        self.workdir = Workdir(workdir, observer)
        self.cache = Cache(self.workdir.path)
        self.protocol = PROTOCOLS[config.protocol]
        self.model = self._load_model()
        self.encoder = self.model.encoder
        self.identity = encoder_hash(self.encoder)
        self.auto = self._load_auto() if config.auto else None
        self.preprocess = self.protocol.preprocess(self.encoder.spec.preprocessing)
        self.dataset = functools.cache(self._open_dataset)
        self.images = functools.cache(self._load_images)
        self.data_identity = functools.cache(self._identify_data)
        self.prompts = functools.cache(self._read_prompts)
        self.class_vectors = functools.cache(self._make_class_vectors)

    def _load_model(self) -> checkpoints.Model:
        """The config's model: bundled, a model folder, or a checkpoint that is converted into the work folder once."""
        source = self.config.model
        if source == "bundled":
            from regcache_jax.demo.bundled import bundled_model

            return checkpoints.load(bundled_model())
        if (as_path(source) / checkpoints.ENCODER_FILE).exists():
            return checkpoints.load(source)

        def make() -> Json:
            from regcache_jax import converters

            converters.convert(source, self.workdir.path / "model")
            return {"source": source}

        self.workdir.stage("convert", [source, listing(source)], make, files=["model"])
        return checkpoints.load(self.workdir.path / "model")

    def _load_auto(self) -> Encoder:
        """What `quantize --auto` has made of the config's encoder at its first scheme. Raises UserError for what is something else."""
        found, bits = checkpoints.load(self.config.auto).encoder, self.config.schemes[0]
        own = None if found.scheme is None else f"w{found.scheme.weight_bits}a{found.scheme.activation_bits}"
        if found.spec != self.encoder.spec or own != bits:
            raise UserError(
                f"config.auto must be a {self.encoder.spec.name} at {bits}, from `quantize --auto`; "
                f"{self.config.auto} is {found.spec.name} at {own or 'float'}"
            )
        return found

    def pictures(self, which: str) -> Pictures:
        """The config's `reference`, `calibration`, `evaluation` or `bank` pictures."""
        return getattr(self.config, which)

    def _open_dataset(self, which: str) -> Dataset:
        """Their dataset."""
        given = self.pictures(which)
        data = open_dataset(given.dataset, given.data_dir or None, given.split or None, given.limit or None)
        for note in data.notes:
            self.observer.said(note)
        return data

    def _load_images(self, which: str) -> np.ndarray:
        """Its preprocessed pictures, read once."""
        images = load_images(self.dataset(which), self.preprocess)
        if (dull := dullness(images)) is not None:
            self.observer.said(f"{which}: {dull}")
        return images

    def _identify_data(self, which: str) -> Json:
        """What a stage that reads some data depends on."""
        data = self.dataset(which)
        files = fingerprint(data.identity())
        return {
            **dataclasses.asdict(self.pictures(which)),
            "examples": len(data),
            "files": files,
            "image": self.protocol.image,
        }

    def source_of(self, which: str) -> Json:
        """What stands in a plan's or a model's metadata about the data that made it."""
        return {key: self.data_identity(which)[key] for key in ("dataset", "split", "examples")}

    def _read_prompts(self) -> Prompts:
        """Names and templates of the evaluation's classes."""
        data = self.dataset("evaluation")
        return self.protocol.prompts(data, self.config.classnames or None, self.config.templates or None)

    def _make_class_vectors(self) -> np.ndarray:
        """Class vectors of the evaluation's classes, which the work folder keeps."""
        prompts = self.prompts()
        return class_vectors(self.encoder, self.model.tokenize, prompts.classnames, prompts.templates, cache=self.cache)
