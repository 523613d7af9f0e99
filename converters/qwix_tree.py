"""Qwix's quantised trees of our encoders: nested dicts by our names, integer kernels as `qwix.QArray` (`qvalue`, `scale`, `zero_point`).

Both say `qvalue * scale`, `scale` of the kernel's rank with ones on the axes that share it, so nothing is computed on the way. A folder
holds the tree as an Orbax checkpoint, `params/`, and beside it what a tree does not say: spec and scheme (`qwix.json`), the
tokenizer's files, the names of classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict
from regcache_jax.converters.tokenizer_files import find_tokenizer
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from regcache_jax.core.errors import UserError, installing
from regcache_jax.core.names import from_names, to_names
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.bounded import read_json
from regcache_jax.files.paths import whole_folder
from regcache_jax.files.places import as_path
from regcache_jax.models import layout
from regcache_jax.models.arrays import load_parameters, save_parameters
from regcache_jax.models.description import read_scheme, read_spec
from regcache_jax.models.folder import LABELS_FILE, Model, save, tokenizer_files

TOLD_FILE = "qwix.json"
VALUES, SCALE = "/values", "/scale"
"""How a kernel's integers and their scale end among our names."""


class Told(TypedDict):
    """What `qwix.json` holds, as encoder.json does."""

    spec: dict[str, Any]
    scheme: dict[str, Any] | None


def to_qwix(encoder: Encoder) -> dict[str, Any]:
    """The parameters as Qwix keeps them. Registers are no parameters, and stay in their plan's file.

    Raises UserError where the package is not installed."""
    try:
        import qwix
    except ModuleNotFoundError:
        raise UserError(f"Qwix's trees need the package qwix: {installing('qwix')}") from None
    flat = to_names(encoder.params)
    for name in [name for name in flat if name.endswith(VALUES)]:
        kernel = name.removesuffix(VALUES)
        flat[kernel] = qwix.QArray(flat.pop(name), flat.pop(kernel + SCALE))
    return unflatten_dict(flat, sep="/")


def from_qwix(tree: Mapping[str, Any], spec: EncoderSpec, scheme: Scheme | None) -> Encoder:
    """The encoder that a tree holds: of QArrays, or of dicts with their fields as Orbax gives them back. `scheme`: how it is quantised; one
    with static scales needs those in the tree, under our names. None: not at all, or, where there are QArrays, to 8 bits a channel and,
    of inputs, a token.

    Raises UserError that names kernels with zero points, with integers of more bits than the scheme's, and all that does not fit."""
    flat: dict[str, jax.Array] = {}
    faults = []
    leaves = list(_leaves(tree))
    if scheme is None and any(isinstance(leaf, Mapping) for _, leaf in leaves):
        scheme = Scheme(activations="token")
    bits = 8 if scheme is None else scheme.weight_bits
    for name, leaf in leaves:
        if not isinstance(leaf, Mapping):
            flat[name] = jnp.asarray(leaf)
            continue
        values = jnp.asarray(leaf["qvalue"])
        if leaf.get("zero_point") is not None and np.asarray(leaf["zero_point"]).any():
            faults.append(f"{name} has zero points")
        half = 2 ** (bits - 1)
        if (
            not jnp.issubdtype(values.dtype, jnp.integer)
            or not -half <= int(jnp.min(values)) <= int(jnp.max(values)) < half
        ):
            faults.append(f"{name} is {values.dtype}, more than the {bits} bits of the scheme")
        flat[name + VALUES] = values.astype(jnp.int8)
        flat[name + SCALE] = jnp.asarray(leaf["scale"], jnp.float32)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}
    if faults := faults or layout.faults(shapes, spec, scheme):
        raise UserError(
            f"Qwix's tree is no {spec.name} of {'float' if scheme is None else scheme.name}: {'; '.join(faults[:12])}"
        )
    return Encoder(from_names(flat), spec=spec, scheme=scheme)


def write_qwix(model: Model | Encoder, out: epath.PathLike) -> epath.Path:
    """Writes the folder of an encoder. Raises UserError for one with a register plan."""
    encoder = model.encoder if isinstance(model, Model) else model
    if encoder.plan is not None:
        raise UserError(
            f"{encoder.spec.name} has a register plan, for which Qwix's trees have no place; quantise it without"
        )
    tree = to_qwix(encoder)
    told = Told(spec=encoder.spec.to_json(), scheme=None if encoder.scheme is None else encoder.scheme.to_json())
    with whole_folder(out) as beside:
        save_parameters(beside, tree)
        (beside / TOLD_FILE).write_text(json.dumps(told, indent=2) + "\n")
        if isinstance(model, Model):
            for name in tokenizer_files(model.folder):
                (model.folder / name).copy(beside / name)
    return as_path(out)


def is_qwix(source: str | Path) -> bool:
    """Whether this is a folder of Qwix's arrays, on a disk as all that is converted."""
    return (Path(source) / TOLD_FILE).is_file()


def read_qwix(folder: epath.PathLike) -> Encoder:
    """The encoder of a folder. Raises UserError that names what is damaged, or cannot be an encoder of ours."""
    folder = as_path(folder)
    told = read_json(folder / TOLD_FILE, Told)
    spec = read_spec(told["spec"], folder / TOLD_FILE)
    return from_qwix(load_parameters(folder), spec, read_scheme(told["scheme"], folder / TOLD_FILE))


def convert_qwix(folder: epath.Path, out: epath.Path, tokenizer: Path | None, alone: bool) -> epath.Path:
    """A folder of Qwix's arrays, which says itself what it is: raises UserError where more is asked (not `alone`)."""
    if not alone:
        raise UserError(f"{folder} holds Qwix's arrays and their spec: only --out and --tokenizer go with it")
    encoder = read_qwix(folder)
    files = find_tokenizer(encoder.spec, tokenizer, Path(folder))
    if (folder / LABELS_FILE).exists():
        files = [*files, folder / LABELS_FILE]
    return save(out, encoder, metadata={"source": str(folder), "layout": "qwix"}, tokenizer_files=files)


def _leaves(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Names and leaves; a quantised array is a dict of its fields, out of the box that says how Qwix quantised it."""
    for name, node in tree.items():
        node = node.get("array", node) if isinstance(node, Mapping) else getattr(node, "array", node)
        if hasattr(node, "qvalue"):
            node = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        if isinstance(node, Mapping) and "qvalue" not in node:
            yield from _leaves(node, f"{before}{name}/")
        else:
            yield f"{before}{name}", node
