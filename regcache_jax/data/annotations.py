"""Captions and maps of classes that lie beside a dataset of pictures: one JSON file, or a folder of masks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from regcache_jax.core.errors import UserError
from regcache_jax.data.dataset import Dataset
from regcache_jax.files.bounded import parse_json, read_bytes, read_json
from regcache_jax.files.pictures import LARGEST_FILE, decoded
from regcache_jax.files.places import as_path

IGNORED = 255
"""The class of pixels that do not count, in every map."""
CAPTIONS_LIMIT = 1 << 30
"""Bytes of a file of captions: COCO's of 118,287 pictures has 92 million."""


def _texts(entry: Any) -> tuple[str, ...] | None:
    """A text or a list of them; None for anything else."""
    texts = [entry] if isinstance(entry, str) else entry
    return tuple(texts) if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None


def json_captions(content: bytes, name: str) -> tuple[str, ...]:
    """The captions of one webdataset sample: `caption` or `captions`, a text or a list. Raises UserError that names it."""
    tree = parse_json(content, object, name)
    found = _texts(tree.get("captions", tree.get("caption", []))) if isinstance(tree, dict) else None
    if found is None:
        raise UserError(f"{name} must hold `caption` or `captions`, a text or a list of texts")
    return found


def read_captions(file: epath.PathLike) -> dict[str, tuple[str, ...]]:
    """Captions by the picture's name (its path below the folder): a JSON object {name: text or list of texts}, or COCO's
    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}. Raises UserError that says what is wrong."""
    tree: Any = read_json(file, object, CAPTIONS_LIMIT)
    if isinstance(tree, dict) and {"images", "annotations"} <= set(tree):
        try:
            names = {image["id"]: image["file_name"] for image in tree["images"]}
            found: dict[str, tuple[str, ...]] = {}
            for entry in tree["annotations"]:
                name, text = names[entry["image_id"]], entry["caption"]
                if not isinstance(name, str) or not isinstance(text, str):
                    raise TypeError(f"{name!r}: {text!r}")
                found[name] = (*found.get(name, ()), text)
        except (KeyError, TypeError) as error:
            raise UserError(f"{file} is not in COCO's format of captions: {error!r}") from None
        return found
    listed = {name: _texts(entry) for name, entry in tree.items()} if isinstance(tree, dict) else {}
    captions = {name: texts for name, texts in listed.items() if texts is not None}
    if not listed or len(captions) < len(listed):
        raise UserError(f'{file} must hold {{"picture.jpg": ["a caption", ...], ...}}, or captions in COCO\'s format')
    return captions


def with_captions(dataset: Dataset, file: epath.PathLike) -> Dataset:
    """The dataset with the captions of a file, by the names of its pictures (or the last part of them, as COCO lists them).

    Raises UserError where the file names none of the pictures, or two of them by one name."""
    captions = read_captions(file)
    owners: dict[str, str] = {}

    def of(index: int) -> tuple[str, ...]:
        name = dataset[index].name
        if name in captions:
            return captions[name]
        short = name.rpartition("/")[2]
        if short in captions and owners.setdefault(short, name) != name:
            raise UserError(f"{file}: {short} may be {owners[short]} or {name}; name pictures by their paths")
        return captions.get(short, ())

    if not any(of(index) for index in range(len(dataset))):
        raise UserError(
            f"{file} names none of the pictures; the first is {dataset[0].name}, its first {next(iter(captions))}"
        )
    return dataclasses.replace(dataset, captions=of, files=(*dataset.files, as_path(file)))


def with_masks(dataset: Dataset, folder: epath.PathLike) -> Dataset:
    """The dataset with the maps of classes in a folder: for every picture a .png of the same path, one byte a pixel (grey or
    palette), 255 where no class counts. Raises UserError where the folder is not there."""
    root = as_path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    return dataclasses.replace(
        dataset,
        segmentation=lambda index: read_mask(root / as_path(dataset[index].name).with_suffix(".png")),
    )


def read_mask(file: epath.Path) -> UInt8[np.ndarray, "Y X"]:
    """A map of classes. Raises UserError that names what is no such map."""
    mask = decoded(read_bytes(file, LARGEST_FILE), str(file), "a map of classes")
    if mask.mode not in ("L", "P", "1"):
        raise UserError(
            f"{file} is no map of classes: it must have one byte a pixel (grey or palette), not mode {mask.mode}"
        )
    return np.asarray(mask.convert("L") if mask.mode == "1" else mask, np.uint8)
