"""Class names and prompt templates: the user's JSON (CLIP_benchmark's format), an installed open_clip (parsed, never imported),
or this project's own few templates."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

from etils import epath

from regcache_jax.data.sources import Dataset
from regcache_jax.errors import UserError

IMAGENET = ("imagenet1k", "imagenet2012", "imagenetv2", "imagenet_v2", "imagenet_sketch")
"""Datasets with ImageNet's 1,000 classes in ImageNet's order; TFDS knows them by WordNet numbers only."""

OWN_TEMPLATES = ("a photo of a {c}.", "a picture of a {c}.", "an image that shows a {c}.", "{c}")


def class_names(dataset: Dataset, file: str | None = None) -> tuple[str, ...]:
    """Names of the classes: from a JSON file (a list, or a list a dataset), open_clip for ImageNet, or the dataset's own."""
    if file is not None:
        return tuple(_from_json(file, dataset.name))
    if dataset.name in IMAGENET:
        found = _from_open_clip("IMAGENET_CLASSNAMES")
        if found is None:
            raise UserError(
                f"{dataset.name} needs ImageNet's class names: pip install --no-deps open_clip_torch, or --classnames FILE"
            )
        return tuple(found)
    if dataset.classnames is None:
        raise UserError(
            f"dataset {dataset.name} has no class names; give --classnames FILE (JSON) or put pictures in one folder a class"
        )
    return tuple(name.replace("_", " ") for name in dataset.classnames)


def templates(dataset: Dataset, file: str | None = None) -> tuple[str, ...]:
    """Prompt templates with `{c}` for the class: from a JSON file, the dataset's own, open_clip's 80 for ImageNet, or ours."""
    if file is not None:
        found = tuple(_from_json(file, dataset.name))
        bad = [template for template in found if "{c}" not in template]
        if bad:
            raise UserError(f"{file}: templates need {{c}} where the class name goes; these have none: {bad[:3]}")
        return found
    if dataset.templates is not None:
        return tuple(dataset.templates)
    if dataset.name in IMAGENET:
        published = _from_open_clip("OPENAI_IMAGENET_TEMPLATES")
        if published is not None:
            return tuple(published)
    return OWN_TEMPLATES


def _from_json(file: str, name: str) -> list[str]:
    try:
        tree = json.loads(epath.Path(file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from None
    if isinstance(tree, dict):
        entries = [alias for alias in (name, name.removeprefix("wds/")) if alias in tree]
        if not entries:
            raise UserError(f"{file} has no entry {name!r}; it has {', '.join(sorted(tree)[:8])}")
        tree = tree[entries[0]]
    if not isinstance(tree, list) or not tree or not all(isinstance(text, str) for text in tree):
        raise UserError(f"{file} must hold a list of texts (or one a dataset)")
    return tree


def _from_open_clip(name: str) -> list[str] | None:
    """A list of texts (or of lambdas that format one) in open_clip's source, or None where it is not installed."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).with_name("zero_shot_metadata.py")
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            assert isinstance(node.value, ast.List | ast.Tuple)
            return [_text_of(entry) for entry in node.value.elts]
    return None


def _text_of(entry: ast.expr) -> str:
    """A string, or the template of `lambda c: f"a photo of a {c}."`."""
    if isinstance(entry, ast.Lambda) and isinstance(entry.body, ast.JoinedStr):
        pieces = entry.body.values
        return "".join(str(piece.value) if isinstance(piece, ast.Constant) else "{c}" for piece in pieces)
    return str(ast.literal_eval(entry))
