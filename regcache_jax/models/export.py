"""A quantised (or float) image tower as one StableHLO file, through `jax.export`: nothing of this project is needed to run it.

The file holds one program for every platform asked for, with a symbolic batch size and the weights inside (int8 kernels stay
int8). Beside it lies `NAME.json`, what a user must know: preprocessing constants, input, output, and how it was quantised.
docs/export.md has the few lines that load it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax import export as stablehlo
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import Encoder, encode_image
from regcache_jax.encoders.forms import form_for
from regcache_jax.encoders.taps import encode_patches
from regcache_jax.files.bounded import read_bytes, read_json
from regcache_jax.files.identity import sha256
from regcache_jax.files.paths import refuse_existing, write_json, write_whole
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import is_sealed, seal

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PROGRAM = "program_sha256"
"""The key, beside an artefact, of its hash."""
LARGEST_PROGRAM = 8 << 30
"""Bytes of an artefact that is read."""


def serving_function(
    encoder: Encoder, chip: str | None = None
) -> Callable[[Float[Array, "B Y X 3"]], Float[Array, "B ..."]]:
    """The image tower as a function of preprocessed float32 images, its weights closed over, one array a block and parameter: to pooled
    features, or to the patches of a tower that pools nothing. In the form that suits `chip` (None: the plain one)."""
    prepared = encoder.prepared(chip)
    read = encode_patches if reads_patches(encoder) else encode_image

    def features(images: Float[Array, "B Y X 3"]) -> Float[Array, "B ..."]:
        held = jax.lax.optimization_barrier(
            prepared.serving
        )  # or the compiler would fold int8 constants into wider ones
        return read(prepared.replace(serving=held), images)

    return features


def reads_patches(encoder: Encoder) -> bool:
    """Whether what is exported are patches: of a tower that pools nothing, as a language model's."""
    return encoder.spec.image.pooling == "none"


def metadata(
    encoder: Encoder, platforms: tuple[str, ...], micro_batch: int | None = None, chip: str | None = None
) -> dict[str, Any]:
    """What stands beside an artefact: preprocessing, shapes, scheme and schedule, the form of its program, and the batch to cut
    larger ones into."""
    size, image = encoder.spec.preprocessing.image_size, encoder.spec.image
    patches = reads_patches(encoder)
    return {
        "model": encoder.spec.name,
        "input": {"shape": ["batch", size, size, 3], "dtype": "float32"},
        "output": {
            "shape": ["batch", image.grid**2, image.blocks.width] if patches else ["batch", image.feature_dim],
            "dtype": "float32",
            "unit_length": encoder.spec.normalize and not patches,
        },
        "preprocessing": dataclasses.asdict(encoder.spec.preprocessing),
        "dtype": str(encoder.dtype),
        "scheme": None if encoder.scheme is None else encoder.scheme.to_json(),
        "schedule": None if encoder.schedule is None else dataclasses.asdict(encoder.schedule),
        "platforms": list(platforms),
        "micro_batch": micro_batch,
        "form": {"chip": chip, "is": form_for(chip, encoder.spec.image, encoder.scheme).name},
        "versions": {"jax": jax.__version__, "regcache_jax": importlib.metadata.version("regcache-jax")},
    }


def export(
    encoder: Encoder,
    path: epath.PathLike,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
    micro_batch: int | None = None,
    chip: str | None = None,
) -> epath.Path:
    """Writes `path` (StableHLO), and its metadata beside it with `.json` added to the name. Returns `path`.

    `micro_batch` is noted there: the batch that suits the device best (`tpu.best_micro_batch` finds it). `chip` (`v5e`): the program has
    the form that suits it, on every platform.

    Raises UserError for an unknown platform, or where `path` exists."""
    path = as_path(path)
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        raise UserError(f"platforms are {', '.join(PLATFORMS)}; got {', '.join(unknown) or 'none'}")
    refuse_existing(path)
    _write(encoder, path, platforms, micro_batch, chip)
    return path


def export_again(encoder: Encoder, path: epath.PathLike) -> epath.Path:
    """Writes a file anew from the encoder it was made from, when JAX has come to read it no more: for the platforms and chip, and with the
    batch, that stand beside it. Raises UserError where what stands there is damaged, or speaks of another encoder."""
    path = as_path(path)
    facts = read_json(facts_file(path), dict[str, Any])
    if not is_sealed(facts):
        raise UserError(
            f"{facts_file(path)} is not as `regcache export` wrote it (its hash differs); export to a new name"
        )
    plain = metadata(encoder, (), chip=None)["form"]  # which all had before there were others
    facts.setdefault("form", plain)
    platforms, micro_batch, chip = tuple(facts["platforms"]), facts["micro_batch"], facts["form"]["chip"]
    own = json.loads(json.dumps(metadata(encoder, platforms, micro_batch, chip)))
    if differing := [name for name, value in own.items() if name != "versions" and facts.get(name) != value]:
        raise UserError(f"{path} was made from another encoder: {', '.join(differing)} differ; export to a new name")
    _write(encoder, path, platforms, micro_batch, chip)
    return path


def _write(
    encoder: Encoder, path: epath.Path, platforms: tuple[str, ...], micro_batch: int | None, chip: str | None
) -> None:
    size = encoder.spec.preprocessing.image_size
    (batch,) = stablehlo.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    with _no_source_locations():
        exported = stablehlo.export(jax.jit(serving_function(encoder, chip)), platforms=platforms)(images)
    program = bytes(exported.serialize())
    write_json(facts_file(path), seal({**metadata(encoder, platforms, micro_batch, chip), PROGRAM: sha256(program)}))
    write_whole(path, program)


def facts_file(path: epath.Path) -> epath.Path:
    """The file beside an artefact that says how to use it."""
    return path.with_name(path.name + ".json")


@contextlib.contextmanager
def _no_source_locations() -> Iterator[None]:
    """Programs lowered inside name no source file, so that a file holds no path of the machine that wrote it, and is the same
    bytes wherever it is written."""
    limit = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def load(path: epath.PathLike) -> Callable[[Float[Array, "B Y X 3"]], Float[Array, "B ..."]]:
    """An exported tower as a function from preprocessed float32 images to features (or patches, as it was exported).

    A program runs with this process's rights, so it is taken only with the facts beside it, both as they were written. Raises
    UserError for others."""
    path = as_path(path)
    program = read_bytes(path, LARGEST_PROGRAM)
    facts = read_json(facts_file(path), dict[str, Any])
    if not is_sealed(facts) or facts.get(PROGRAM) != sha256(program):
        raise UserError(
            f"{path} and {facts_file(path).name} are not as `regcache export` wrote them (a hash differs); export again"
        )
    try:
        exported = stablehlo.deserialize(bytearray(program))
    except Exception as error:  # another kind of file fails in flatbuffers or MLIR, each with its own exceptions
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{path} is not an exported encoder ({type(error).__name__}: {reason})") from error
    return jax.jit(exported.call)
