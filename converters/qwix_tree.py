"""Qwix's quantised trees of our encoders: nested dicts by our names, integer kernels as `qwix.QArray` (`qvalue`, `scale`, `zero_point`).

Both say `qvalue * scale`, `scale` of the kernel's rank with ones on the axes that share it, so nothing is computed on the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict

from regcache_jax.core.errors import UserError, installing
from regcache_jax.core.names import from_names, to_names
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.paths import whole_folder
from regcache_jax.files.places import as_path
from regcache_jax.models import layout
from regcache_jax.models.folder import save_parameters

VALUES, SCALE = "/values", "/scale"
"""How a kernel's integers and their scale end among our names."""


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


def from_qwix(tree: Mapping[str, Any], spec: EncoderSpec, scheme: Scheme) -> Encoder:
    """The encoder that a tree holds: of QArrays, or of dicts with their fields as Orbax gives them back. `scheme`: how it is quantised; one
    with static scales needs those in the tree, under our names.

    Raises UserError that names kernels with zero points, with integers of more bits than the scheme's, and all that does not fit."""
    flat: dict[str, jax.Array] = {}
    faults = []
    for name, leaf in _leaves(tree):
        if not isinstance(leaf, Mapping):
            flat[name] = jnp.asarray(leaf)
            continue
        values = jnp.asarray(leaf["qvalue"])
        if leaf.get("zero_point") is not None and np.asarray(leaf["zero_point"]).any():
            faults.append(f"{name} has zero points")
        half = 2 ** (scheme.weight_bits - 1)
        if (
            not jnp.issubdtype(values.dtype, jnp.integer)
            or not -half <= int(jnp.min(values)) <= int(jnp.max(values)) < half
        ):
            faults.append(f"{name} is {values.dtype}, more than the {scheme.weight_bits} bits of the scheme")
        flat[name + VALUES] = values.astype(jnp.int8)
        flat[name + SCALE] = jnp.asarray(leaf["scale"], jnp.float32)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}
    if faults := faults or layout.faults(shapes, spec, scheme):
        raise UserError(f"Qwix's tree is no {spec.name} of {scheme.name}: {'; '.join(faults[:12])}")
    return Encoder(from_names(flat), spec=spec, scheme=scheme)


def write_qwix(encoder: Encoder, out: epath.PathLike) -> epath.Path:
    """Writes the tree as an Orbax checkpoint, `OUT/params`. Raises UserError for an encoder with a register plan."""
    if encoder.plan is not None:
        raise UserError(
            f"{encoder.spec.name} has a register plan, for which Qwix's trees have no place; quantise it without"
        )
    tree = to_qwix(encoder)
    with whole_folder(out) as beside:
        save_parameters(beside, tree)
    return as_path(out)


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
