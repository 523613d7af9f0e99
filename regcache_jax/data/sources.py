"""Datasets by name: the bundled pictures, a folder, anything of TFDS, and random pictures of any number.

A dataset is a sequence of `Example`s. TFDS is read with `tfds.data_source`, which needs no TensorFlow.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from regcache_jax.data import emoji
from regcache_jax.errors import UserError

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}

CLIP_BENCHMARK_NAMES = {
    "imagenet1k": "imagenet2012", "imagenetv2": "imagenet_v2", "imagenet_sketch": "imagenet_sketch",
    "imagenet-a": "imagenet_a", "imagenet-r": "imagenet_r", "cifar10": "cifar10", "cifar100": "cifar100",
    "food101": "food101", "sun397": "sun397", "cars": "cars196", "dtd": "dtd", "pets": "oxford_iiit_pet",
    "caltech101": "caltech101", "flowers": "oxford_flowers102", "mnist": "mnist", "stl10": "stl10", "eurosat": "eurosat",
    "country211": "country211", "pcam": "patch_camelyon", "svhn": "svhn_cropped", "resisc45": "resisc45",
}  # fmt: skip
"""CLIP_benchmark's names of datasets that TFDS has too."""


class Example(NamedTuple):
    """One picture (whatever `preprocess` takes), its class if it has one, and a name to speak of it."""

    image: Any
    label: int | None
    name: str


class Dataset:
    """A sequence of examples, made one by one by a function, with class names and prompt templates where they are known."""

    def __init__(
        self,
        name: str,
        split: str,
        length: int,
        get: Callable[[int], Example],
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
    ) -> None:
        self.name, self.split = name, split
        self._length, self._get = length, get
        self.classnames = None if classnames is None else tuple(classnames)
        self.templates = None if templates is None else tuple(templates)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._get(index)


def open_dataset(name: str, data_dir: str | None = None, split: str | None = None, limit: int | None = None) -> Dataset:
    """Opens `emoji`, `folder`, `dummy` or a TFDS (or CLIP_benchmark) name; `limit` keeps the first examples, of a folder (which
    is sorted by class) evenly spread ones.

    Raises UserError for unknown names (with the nearest), folders without pictures, splits that do not exist."""
    openers = {"emoji": _emoji, "folder": _folder, "dummy": _dummy}
    dataset = openers.get(name, _tfds)(name, data_dir, split)
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, got {limit}")
    if limit is None or limit >= len(dataset):
        return dataset
    chosen = np.linspace(0, len(dataset) - 1, limit).round().astype(int) if name == "folder" else np.arange(limit)
    return Dataset(
        dataset.name,
        dataset.split,
        limit,
        lambda index: dataset[int(chosen[index])],
        dataset.classnames,
        dataset.templates,
    )


def _emoji(name: str, data_dir: str | None, split: str | None) -> Dataset:
    split = split or "test"
    if split not in emoji.SPLITS:
        raise UserError(f"emoji has the splits {', '.join(emoji.SPLITS)}, not {split!r}")
    listed = emoji.pictures(split)

    def get(index: int) -> Example:
        vendor, concept, rendering = listed[index]
        return Example(emoji.render(vendor, concept, rendering), concept, f"{vendor}/{concept:03d}-{rendering}")

    return Dataset(name, split, len(listed), get, emoji.class_names(), emoji.TEMPLATES)


def _folder(name: str, data_dir: str | None, split: str | None) -> Dataset:
    """Pictures under a folder, sorted; where they lie in subfolders, the first folder's name is the class."""
    if data_dir is None:
        raise UserError("dataset folder needs --data-dir FOLDER")
    root = Path(data_dir).expanduser()
    root = root / split if split else root
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"{root} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
    classes = sorted({file.relative_to(root).parts[0] for file in files if len(file.relative_to(root).parts) > 1})
    number = {classname: index for index, classname in enumerate(classes)}

    def get(index: int) -> Example:
        relative = files[index].relative_to(root)
        return Example(files[index], number.get(relative.parts[0]), relative.as_posix())

    return Dataset(name, split or "all", len(files), get, classes or None)


def _dummy(name: str, data_dir: str | None, split: str | None) -> Dataset:
    """Random pictures of 10 classes, 50,000 unless limited; each is made when it is asked for."""

    def get(index: int) -> Example:
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8)
        return Example(pixels, index % 10, f"dummy-{index}")

    return Dataset(name, split or "test", 50_000, get, [f"class {number}" for number in range(10)])


def _tfds(name: str, data_dir: str | None, split: str | None) -> Dataset:
    import tensorflow_datasets as tfds

    asked = CLIP_BENCHMARK_NAMES.get(name, name)
    try:
        builder = tfds.builder(asked, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = ["emoji", "folder", "dummy", *CLIP_BENCHMARK_NAMES, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name, known, 3)
        raise UserError(
            f"unknown dataset {name!r}; {'did you mean ' + ', '.join(near) if near else 'see `tfds` for names'}"
        ) from None
    split = split or (
        "validation" if "validation" in builder.info.splits and "test" not in builder.info.splits else "test"
    )
    if split not in builder.info.splits:
        available = ", ".join(builder.info.splits) or "none yet: run `tfds build` or `download_and_prepare`"
        raise UserError(f"{asked} has no split {split!r} in {builder.data_dir}; there are {available}")
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise UserError(
            f"{asked} in {builder.data_dir} is not stored for random access; prepare it again with "
            f"`tfds build {asked} --file_format=array_record` ({error})"
        ) from None
    features = builder.info.features
    classnames = getattr(features["label"], "names", None) if "label" in features else None

    def get(index: int) -> Example:
        row = source[index]
        return Example(row["image"], int(row["label"]) if "label" in row else None, f"{asked}/{split}/{index}")

    return Dataset(name, split, len(source), get, classnames)
