"""Datasets by name: the bundled pictures, a folder, webdataset shards, anything of TFDS, and random pictures of any number.

A dataset is a sequence of `Example`s, whose pictures stay encoded until `preprocess` decodes them. TFDS is read without
TensorFlow, whether it was prepared as ArrayRecord or as classic TFRecord files.
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.data import emoji
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.data.folders import folder_dataset
from regcache_jax.data.shards import TfrecordSource
from regcache_jax.data.webdataset import webdataset
from regcache_jax.files.bounded import decode
from regcache_jax.files.places import as_path

CLIP_BENCHMARK_NAMES = {
    "imagenet1k": "imagenet2012", "imagenetv2": "imagenet_v2", "imagenet_sketch": "imagenet_sketch",
    "imagenet-a": "imagenet_a", "imagenet-r": "imagenet_r", "cifar10": "cifar10", "cifar100": "cifar100",
    "food101": "food101", "sun397": "sun397", "cars": "cars196", "dtd": "dtd", "pets": "oxford_iiit_pet",
    "caltech101": "caltech101", "flowers": "oxford_flowers102", "mnist": "mnist", "stl10": "stl10", "eurosat": "eurosat",
    "pcam": "patch_camelyon", "svhn": "svhn_cropped", "resisc45": "resisc45",
}  # fmt: skip
"""CLIP_benchmark's names of datasets that TFDS has too."""

PREFIXES = ("wds/", "tfds/", "vtab/")
"""What CLIP_benchmark puts before a name to say where it is from."""

DUMMY_LENGTH = 50_000


def open_dataset(name: str, data_dir: str | None = None, split: str | None = None, limit: int | None = None) -> Dataset:
    """Opens `emoji`, `folder`, `wds/NAME`, `dummy` or a TFDS (or CLIP_benchmark) name; `limit` keeps the first examples, of a
    folder (which is sorted by class) evenly spread ones.

    Raises UserError for unknown names (with the nearest), folders without pictures, splits that do not exist."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, got {limit}")
    if name == "dummy":
        return _dummy(split, DUMMY_LENGTH if limit is None else limit)
    openers = {"emoji": _emoji, "folder": _folder}
    dataset = (_webdataset if name.startswith("wds/") else openers.get(name, _tfds))(name, data_dir, split)
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.spread(limit) if name == "folder" else dataset.chosen(range(limit))


def without_prefix(name: str) -> str:
    """CLIP_benchmark's name of a dataset without what says where it is from."""
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _emoji(name: str, data_dir: str | None, split: str | None) -> Dataset:
    split = split or "test"
    if split not in emoji.SPLITS:
        raise UserError(f"emoji has the splits {', '.join(emoji.SPLITS)}, not {split!r}")
    listed = emoji.pictures(split)

    def get(index: int) -> Example:
        vendor, concept, rendering = listed[index]
        return Example(emoji.render(vendor, concept, rendering), concept, f"{vendor}/{concept:03d}-{rendering}")

    def captions(index: int) -> tuple[str, ...]:
        _, concept, rendering = listed[index]
        return (emoji.class_names()[concept],) if rendering == 0 else ()  # one picture a text

    return Dataset(
        name, split, len(listed), get, emoji.class_names(), emoji.TEMPLATES,
        labels=[concept for _, concept, _ in listed], captions=captions,
        segmentation=lambda index: emoji.foreground(*listed[index]),
    )  # fmt: skip


def _root(name: str, data_dir: str | None, split: str | None) -> epath.Path:
    """The folder of a dataset of files, its split's subfolder where one is asked for."""
    if data_dir is None:
        raise UserError(f"dataset {name} needs --data-dir FOLDER")
    root = as_path(data_dir).expanduser()
    root = root / split if split else root
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    return root


def _folder(name: str, data_dir: str | None, split: str | None) -> Dataset:
    return folder_dataset(name, _root(name, data_dir, split), split)


def _webdataset(name: str, data_dir: str | None, split: str | None) -> Dataset:
    split = split or "test"
    return webdataset(name, _root(name, data_dir, split), split)


def _dummy(split: str | None, length: int) -> Dataset:
    """Random pictures of 10 classes, as many as `limit` says; each is made when it is asked for."""

    def get(index: int) -> Example:
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8)
        return Example(pixels, index % 10, f"dummy-{index}")

    return Dataset(
        "dummy", split or "test", length, get, [f"class {number}" for number in range(10)], naming=lambda index: f"dummy-{index}",
    )  # fmt: skip


def _tfds(name: str, data_dir: str | None, split: str | None) -> Dataset:
    import tensorflow_datasets as tfds

    from regcache_jax.data import regcache_emoji  # noqa: F401  TFDS knows a builder once its class exists

    bare = without_prefix(name)
    asked = CLIP_BENCHMARK_NAMES.get(bare, bare)
    try:
        builder = tfds.builder(asked, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError):
        own = ["emoji", "folder", "wds/", "dummy"]
        known = [*own, *CLIP_BENCHMARK_NAMES, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(own)} and the names of TFDS"
        raise UserError(f"unknown dataset {name!r}; {hint}") from None
    splits = builder.info.splits
    if not splits:
        raise UserError(
            f"{asked} is not in {builder.data_dir}; prepare it with `tfds build {asked} --file_format=array_record`"
        )
    split = split or ("test" if "test" in splits or "validation" not in splits else "validation")
    try:
        instructions = splits[split].file_instructions
    except (KeyError, ValueError):
        raise UserError(
            f"{asked} has no split {split!r} in {builder.data_dir}; there are {', '.join(splits)}"
        ) from None
    features = builder.info.features
    if "image" not in features:
        raise UserError(f"{asked} has no pictures; its features are {', '.join(features)}")
    decoders = {"image": tfds.decode.SkipDecoding()}  # `preprocess` decodes every source alike
    source: Any
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        source = TfrecordSource(instructions, lambda record: features.deserialize_example_np(record, decoders=decoders))
    else:
        try:
            source = builder.as_data_source(split=split, decoders=decoders)
        except NotImplementedError:
            raise UserError(
                f"{asked} in {builder.data_dir} is stored as {builder.info.file_format.value}, which has no random access; prepare it "
                f"again with `tfds build {asked} --file_format=array_record`"
            ) from None
    classnames = getattr(features["label"], "names", None) if "label" in features else None

    def get(index: int) -> Example:
        row = source[index]
        label = int(row["label"]) if "label" in row else -1
        return Example(row["image"], None if label < 0 else label, f"{asked}/{split}/{index}")  # TFDS says -1 for none

    def captions(index: int) -> tuple[str, ...]:
        row = source[index]
        texts = row["captions"]["text"] if "captions" in row else ()
        return tuple(
            decode(text, f"{asked}/{split}/{index}") if isinstance(text, bytes) else str(text) for text in texts
        )

    return Dataset(
        name, split, len(source), get, classnames, files=[as_path(part.filename) for part in instructions],
        captions=captions, segmentation=lambda index: source[index].get("segmentation_mask"),
        naming=lambda index: f"{asked}/{split}/{index}",
    )  # fmt: skip
