"""Model folders: an encoder on disk, float or quantised, with all that is needed to use it.

    encoder.json            spec, scheme, source and its SHA-256, versions, names and shapes of the parameters, and the seal: size
                            and SHA-256 of every other file, and its own
    params/                 the parameters (Orbax), one array a leaf
    registers.safetensors   the register plan, if the encoder has one
    tokenizer.json ...      the tokenizer's own files, if the encoder reads text
    labels.json             what the classes of the encoder's classifier are called, if it has one and they are known

A folder appears under its name only when it is complete. Everything in it is data; nothing is executed. Folders may be on
gs:// or wherever else `etils.epath` reaches.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata as package_metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from regcache_jax.core.errors import UserError
from regcache_jax.core.names import from_names, to_names
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.encoders.tokenizers import load_tokenizer
from regcache_jax.files.bounded import read_json
from regcache_jax.files.paths import whole_folder
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import FILES, belongs, check_folder, describe_folder
from regcache_jax.models import layout
from regcache_jax.models.arrays import params_path, reading, save_parameters, stored_shapes
from regcache_jax.models.description import (
    ENCODER_FILE,
    FORMAT_VERSION,
    PARAMS_FOLDER,
    check_sizes,
    read_description,
    read_scheme,
    read_spec,
)
from regcache_jax.models.plan_file import load_plan, save_plan

PLAN_FILE = "registers.safetensors"
LABELS_FILE = "labels.json"


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder with its folder, its description (`encoder.json`), and the way from pictures and words to its arrays."""

    encoder: Encoder
    metadata: Mapping[str, Any]
    folder: epath.Path

    def preprocess(self, image: Any) -> np.ndarray:
        """A picture (PIL, path or bytes) as the float32 array `[S, S, 3]` that the image tower takes."""
        return preprocess(image, self.encoder.spec.preprocessing)

    @property
    def tokenize(self) -> Callable[[list[str]], np.ndarray]:
        """From texts to int32 ids `[n, T]`. Raises UserError for an encoder without text or without tokenizer files."""
        spec = self.encoder.spec
        if spec.tokenization is None:
            raise UserError(f"{spec.name} reads no text")
        return load_tokenizer(spec.tokenization, self.folder)

    @property
    def labels(self) -> list[str] | None:
        """What the classes of the classifier are called; None where nobody said. Raises UserError for another number of them."""
        file = self.folder / LABELS_FILE
        if self.encoder.spec.num_classes is None or not file.exists():
            return None
        names = read_json(file, list[str])
        if len(names) != self.encoder.spec.num_classes:
            raise UserError(f"{file} has {len(names)} names for {self.encoder.spec.num_classes} classes")
        return names


def save(
    folder: epath.PathLike,
    encoder: Encoder,
    *,
    metadata: Mapping[str, Any] | None = None,
    tokenizer_files: Iterable[epath.PathLike] = (),
    labels: Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
) -> epath.Path:
    """Writes a model folder and returns its path. `metadata` is kept in encoder.json beside what stands there anyway; `labels` are the
    names of the classifier's classes; `dtype` casts float weights on the way. Raises UserError if the folder exists."""
    folder = as_path(folder)
    encoder = encoder if dtype is None else encoder.astype(dtype)
    flat = to_names(encoder.params)
    description = {
        "format_version": FORMAT_VERSION,
        "regcache_jax": package_metadata.version("regcache-jax"),
        "spec": encoder.spec.to_json(),
        "scheme": None if encoder.scheme is None else encoder.scheme.to_json(),
        "parameters": {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in sorted(flat.items())},
        **(metadata or {}),
    }
    with whole_folder(folder) as beside:
        _check_space(folder, sum(leaf.nbytes for leaf in flat.values()))
        save_parameters(beside, unflatten_dict(flat, sep="/"))
        if encoder.plan is not None:
            save_plan(beside / PLAN_FILE, encoder.plan)
        for file in map(epath.Path, tokenizer_files):
            file.copy(beside / file.name)
        if labels is not None:
            (beside / LABELS_FILE).write_text(json.dumps(list(labels), ensure_ascii=False))
        (beside / ENCODER_FILE).write_bytes(describe_folder(beside, description))
    return folder


def _check_space(folder: epath.Path, size: int) -> None:
    """Raises OSError, before anything is written, where a local disk has less than `size` bytes left."""
    if "://" in str(folder):
        return
    free = shutil.disk_usage(folder.parent).free
    if free < size:
        needs = f"{os.strerror(errno.ENOSPC)} ({size / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free)"
        raise OSError(errno.ENOSPC, needs, str(folder))


Placing = Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding]


def load(folder: epath.PathLike, *, sharding: jax.sharding.Sharding | Placing | None = None) -> Model:
    """Reads a model folder, its parameters straight onto `sharding` (None: this process's first device): one for all of them, or a
    function of a parameter's path (`image/blocks/mlp/fc1/kernel`) and shape, so that a mesh can hold a share of each.

    Raises UserError that names the folder and everything that is missing or does not fit its spec."""
    folder = as_path(folder)
    description = read_description(folder)
    check_files(folder, description)
    spec = read_spec(description.get("spec"), folder / ENCODER_FILE)
    scheme = read_scheme(description.get("scheme"), folder / ENCODER_FILE)
    template = _read_shapes(folder, description, spec, scheme)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = {path: sharding(path, leaf) if callable(sharding) else sharding for path, leaf in template.items()}
    with reading(folder) as checkpointer:
        _check_stored(folder, stored_shapes(folder, checkpointer), template)
        flat = checkpointer.restore(
            params_path(folder),
            args=ocp.args.PyTreeRestore(
                item=unflatten_dict(template, sep="/"),
                restore_args=jax.tree.map(
                    lambda leaf, place: ocp.ArrayRestoreArgs(sharding=place, dtype=leaf.dtype, global_shape=leaf.shape),
                    unflatten_dict(template, sep="/"),
                    unflatten_dict(placed, sep="/"),
                ),
            ),
        )
    encoder = Encoder(from_names(flatten_dict(flat, sep="/")), spec=spec, scheme=scheme)
    if (folder / PLAN_FILE).exists():
        encoder = encoder.with_plan(load_plan(folder / PLAN_FILE)[0])
    return Model(encoder, description, folder)


def check_files(folder: epath.Path, description: Mapping[str, Any]) -> None:
    """Raises UserError that names the files that are missing, cut or (where encoder.json holds hashes) changed."""
    if FILES in description:
        check_folder(folder, description[FILES], ENCODER_FILE)
    else:
        check_sizes(folder, description)


def tokenizer_files(folder: epath.PathLike) -> list[str]:
    """Names of the tokenizer's files in a model folder: all that is neither description, parameters nor plan, nor hidden or a *.md."""
    own = {ENCODER_FILE, PARAMS_FOLDER, PLAN_FILE}
    return sorted(name for entry in as_path(folder).iterdir() if (name := entry.name) not in own and belongs(name))


def _read_shapes(
    folder: epath.Path, description: Mapping[str, Any], spec: EncoderSpec, scheme: Scheme | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves that encoder.json lists, which must be those of `layout`."""
    listed: Any = description.get("parameters")
    try:
        leaves = {path: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype)) for path, (dtype, shape) in listed.items()}
    except (TypeError, ValueError, AttributeError):
        raise UserError(f"{folder / ENCODER_FILE} does not list its parameters as name: [type, shape]") from None
    try:
        faults = layout.faults(leaves, spec, scheme)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{folder / ENCODER_FILE} has a spec of impossible sizes: {str(error).splitlines()[0]}"
        ) from None
    if faults:
        raise UserError(f"{folder / ENCODER_FILE} does not fit its spec: {'; '.join(faults[:12])}")
    return leaves


def _check_stored(folder: epath.Path, stored: Any, template: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raises UserError where the arrays on disk are not those that encoder.json lists (Orbax would pad or cut them)."""
    held = {path: tuple(leaf.shape) for path, leaf in flatten_dict(stored, sep="/").items()}
    faults = [f"{path} is missing" for path in template if path not in held]
    faults += [f"{path} is not in {ENCODER_FILE}" for path in held if path not in template]
    faults += [
        f"{path} is {list(held[path])}, expected {list(leaf.shape)}"
        for path, leaf in template.items()
        if path in held and held[path] != leaf.shape
    ]
    if faults:
        raise UserError(f"{folder / PARAMS_FOLDER} does not hold what {ENCODER_FILE} lists: {'; '.join(faults[:12])}")
