"""Class names and prompt templates: the user's JSON (CLIP_benchmark's format), an installed open_clip (parsed, never imported),
or this project's own few templates."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from regcache_jax.core.errors import UserError
from regcache_jax.data.dataset import Dataset
from regcache_jax.data.sources import CLIP_BENCHMARK_NAMES, without_prefix
from regcache_jax.files.bounded import read_json, read_text

IMAGENET = ("imagenet1k", "imagenet2012", "imagenetv2", "imagenet_v2", "imagenet_sketch")
"""Datasets with ImageNet's 1,000 classes in ImageNet's order; TFDS knows them by WordNet numbers only."""

SPLITS = {"train", "training", "test", "val", "valid", "validation"}
"""Folders that hold pictures by split, not by class."""

OWN_TEMPLATES = ("a photo of a {c}.", "a picture of a {c}.", "an image that shows a {c}.", "{c}")
OPEN_CLIP = "open_clip_torch"


class Words(NamedTuple):
    """Class names or templates, and where they are from: a file, `dataset`, open_clip_torch, or `regcache_jax`."""

    texts: tuple[str, ...]
    source: str

    @property
    def published(self) -> bool:
        """Whether they are those that open_clip ships for ImageNet."""
        return self.source == OPEN_CLIP


def class_names(dataset: Dataset, file: str | None = None) -> Words:
    """Names of the classes: from a JSON file (a list, or a list a dataset), open_clip for ImageNet (by its order, or where
    classes are called by WordNet numbers), or the dataset's own. Raises UserError where there are none."""
    if file is not None:
        return _checked(Words(tuple(_from_json(file, dataset.name)), file), dataset)
    own = dataset.classnames
    if dataset.name == "folder" and own is not None and set(own) <= SPLITS:
        raise UserError(f"the folder holds {', '.join(own)}, which are no classes; choose one with --split")
    if without_prefix(dataset.name) in IMAGENET and (own is None or _are_wordnet_numbers(own)):
        return Words(tuple(_imagenet_names(dataset)), OPEN_CLIP)
    if own is None:
        raise UserError(
            f"dataset {dataset.name} has no class names; give --classnames FILE (JSON) or put pictures in one folder a class"
        )
    if _are_wordnet_numbers(own):
        names = _imagenet_names(dataset)
        number = {wordnet: index for index, wordnet in enumerate(_imagenet_order())}
        return Words(tuple(names[number[wordnet]] if wordnet in number else wordnet for wordnet in own), OPEN_CLIP)
    return Words(tuple(name.replace("_", " ") for name in own), "dataset")


def _checked(names: Words, dataset: Dataset) -> Words:
    """Raises UserError where a file names another number of classes than the dataset has."""
    if dataset.classnames is not None and len(names.texts) != len(dataset.classnames):
        raise UserError(
            f"{names.source} names {len(names.texts)} classes, {dataset.name} has {len(dataset.classnames)}"
        )
    return names


def templates(dataset: Dataset, file: str | None = None) -> Words:
    """Prompt templates with `{c}` for the class: from a JSON file, the dataset's own, open_clip's 80 for ImageNet, or ours."""
    if file is not None:
        found = tuple(_from_json(file, dataset.name))
        return _with_place(Words(found, file))
    if dataset.templates is not None:
        return _with_place(Words(tuple(dataset.templates), "dataset"))
    imagenet = without_prefix(dataset.name) in IMAGENET or _are_wordnet_numbers(dataset.classnames or ())
    published = _from_open_clip("OPENAI_IMAGENET_TEMPLATES") if imagenet else None
    return Words(OWN_TEMPLATES, "regcache_jax") if published is None else Words(tuple(published), OPEN_CLIP)


def _with_place(words: Words) -> Words:
    """Raises UserError for templates that have no place for the name, and where there are none."""
    bad = [template for template in words.texts if "{c}" not in template]
    if bad or not words.texts:
        raise UserError(f"{words.source}: templates need {{c}} where the class name goes; these have none: {bad[:3]}")
    return words


def _are_wordnet_numbers(names: Sequence[str]) -> bool:
    return bool(names) and all(re.fullmatch(r"n\d{8}", name) for name in names)


def _imagenet_names(dataset: Dataset) -> list[str]:
    found = _from_open_clip("IMAGENET_CLASSNAMES")
    if found is None:
        raise UserError(
            f"{dataset.name} needs ImageNet's class names: pip install --no-deps open_clip_torch, or --classnames FILE"
        )
    return found


def _imagenet_order() -> list[str]:
    """ImageNet's WordNet numbers in the order of its classes, as TFDS lists them."""
    package = importlib.util.find_spec("tensorflow_datasets")
    assert package is not None and package.origin is not None  # a dependency of this package
    return (Path(package.origin).parent / "datasets" / "imagenet2012" / "labels.txt").read_text().split()


def _from_json(file: str, name: str) -> list[str]:
    tree = read_json(file, object)
    if isinstance(tree, dict):
        bare = without_prefix(name)
        others = [short for short, long in CLIP_BENCHMARK_NAMES.items() if long == bare]
        entries = [alias for alias in (name, bare, *others) if alias in tree]
        if not entries:
            raise UserError(f"{file} has no entry {name!r}; it has {', '.join(sorted(tree)[:8])}")
        tree = tree[entries[0]]
    if not isinstance(tree, list) or not tree or not all(isinstance(text, str) for text in tree):
        raise UserError(f"{file} must hold a list of texts (or one a dataset)")
    return tree


def _from_open_clip(name: str) -> list[str] | None:
    """A list of texts (or of lambdas that format one) in open_clip's source, or None where it is not installed.

    Raises UserError for a version that keeps it elsewhere."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).with_name("zero_shot_metadata.py")
    try:
        for node in ast.parse(read_text(file)).body:
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                assert isinstance(node.value, ast.List | ast.Tuple)
                return [_text_of(entry) for entry in node.value.elts]
    except (OSError, SyntaxError, ValueError, AssertionError) as error:
        raise UserError(
            f"{file} of open_clip_torch cannot be read: {error}; give --classnames and --templates"
        ) from None
    raise UserError(f"{file} of open_clip_torch has no {name}; give --classnames and --templates")


def _text_of(entry: ast.expr) -> str:
    """A string, or the template of `lambda c: f"a photo of a {c}."`."""
    if isinstance(entry, ast.Lambda) and isinstance(entry.body, ast.JoinedStr):
        pieces = entry.body.values
        return "".join(str(piece.value) if isinstance(piece, ast.Constant) else "{c}" for piece in pieces)
    return str(ast.literal_eval(entry))
