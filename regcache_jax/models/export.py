"""A quantised (or float) image tower as one StableHLO file, through `jax.export`: nothing of this project is needed to run it.

The file holds one program for every platform asked for, with the weights inside (int8 kernels stay int8), of any batch size or of one.
Beside it lies `NAME.json`, what a user must know: preprocessing constants, input, output, and how it was quantised; on request also
`NAME.mlirbc`, the same program as portable StableHLO bytecode for engines without JAX. docs/export.md has the few lines that load it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
from etils import epath
from jax import export as stablehlo
from jaxtyping import Array, Float, Shaped

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import Encoder, encode_image
from regcache_jax.encoders.forms import form_for
from regcache_jax.encoders.preprocess_inside import TOLERANCE, preprocess_inside
from regcache_jax.encoders.taps import encode_patches
from regcache_jax.files.bounded import read_bytes, read_json
from regcache_jax.files.identity import sha256
from regcache_jax.files.paths import refuse_existing, write_json, write_whole
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import is_sealed, seal

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PROGRAM, BYTECODE = "program_sha256", "bytecode_sha256"
"""The keys, beside an artefact, of its hash and of that of its bytecode."""
LARGEST_PROGRAM = 8 << 30
"""Bytes of an artefact that is read."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What an exported program is made for: platforms; pictures a call (None: any number); rows and columns of uint8 pictures, which
    it preprocesses itself (None: it takes preprocessed ones); dtype of what it gives; and, of a program for a chip (`v5e`), the form that
    suits that one and the batch that suits it best. `bytecode`: portable StableHLO is written too.

    Raises UserError for unknown platforms."""

    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    batch: int | None = None
    pictures: tuple[int, int] | None = None
    outputs: Literal["float32", "bfloat16"] = "float32"
    chip: str | None = None
    micro_batch: int | None = None
    bytecode: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.platforms) - set(PLATFORMS))
        if unknown or not self.platforms:
            raise UserError(f"platforms are {', '.join(PLATFORMS)}; got {', '.join(unknown) or 'none'}")

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Program:
        """What an artefact was made for, by what stands beside it."""
        batch, *pictures = facts["input"]["shape"][:3]
        return cls(
            platforms=tuple(facts["platforms"]),
            batch=None if batch == "batch" else batch,
            pictures=tuple(pictures) if facts["input"]["dtype"] == "uint8" else None,
            outputs=facts["output"]["dtype"],
            chip=facts.get("form", {}).get("chip"),  # there were no forms before 0.2
            micro_batch=facts["micro_batch"],
            bytecode=BYTECODE in facts,
        )


ANY = Program()
"""A program of any batch size for all usual platforms."""


def serving_function(encoder: Encoder, program: Program) -> Callable[[Shaped[Array, "B Y X 3"]], Float[Array, "B ..."]]:
    """The image tower as a function of preprocessed float32 images, or of uint8 pictures, its weights closed over, one array a block and
    parameter: to pooled features, or to the patches of a tower that pools nothing. In the form that suits the program's chip."""
    prepared = encoder.prepared(program.chip)
    read = encode_patches if reads_patches(encoder) else encode_image
    inside = None if program.pictures is None else preprocess_inside(encoder.spec.preprocessing, *program.pictures)

    def features(images: Shaped[Array, "B Y X 3"]) -> Float[Array, "B ..."]:
        held = jax.lax.optimization_barrier(
            prepared.serving
        )  # or the compiler would fold int8 constants into wider ones
        images = images if inside is None else inside(images)
        return read(prepared.replace(serving=held), images).astype(program.outputs)

    return features


def reads_patches(encoder: Encoder) -> bool:
    """Whether what is exported are patches: of a tower that pools nothing, as a language model's."""
    return encoder.spec.image.pooling == "none"


def input_of(encoder: Encoder, program: Program) -> tuple[tuple[int, int, int], str]:
    """Shape of one picture that a program takes, and its dtype."""
    if program.pictures is None:
        return encoder.spec.image.picture_shape, "float32"
    return (*program.pictures, 3), "uint8"


def metadata(encoder: Encoder, program: Program) -> dict[str, Any]:
    """What stands beside an artefact: preprocessing, shapes, scheme and schedule, the form of its program, and the batch to cut
    larger ones into."""
    image, batch = encoder.spec.image, program.batch or "batch"
    patches, (shape, dtype) = reads_patches(encoder), input_of(encoder, program)
    return {
        "model": encoder.spec.name,
        "input": {"shape": [batch, *shape], "dtype": dtype},
        "output": {
            "shape": [batch, image.num_patches, image.blocks.width] if patches else [batch, image.feature_dim],
            "dtype": program.outputs,
            "unit_length": encoder.spec.normalize and not patches,
        },
        "preprocessing": dataclasses.asdict(encoder.spec.preprocessing),
        **({} if program.pictures is None else {"preprocessed_inside_within": TOLERANCE}),
        "dtype": str(encoder.dtype),
        "scheme": None if encoder.scheme is None else encoder.scheme.to_json(),
        "schedule": None if encoder.schedule is None else dataclasses.asdict(encoder.schedule),
        "platforms": list(program.platforms),
        "micro_batch": program.micro_batch,
        "form": {"chip": program.chip, "is": form_for(program.chip, image, encoder.scheme).name},
        "versions": {"jax": jax.__version__, "regcache_jax": importlib.metadata.version("regcache-jax")},
    }


def export(
    encoder: Encoder, path: epath.PathLike, program: Program = ANY, batches: tuple[int, ...] = ()
) -> list[epath.Path]:
    """Writes `path` (StableHLO), and its metadata beside it with `.json` added to the name; or, where `batches` are given, one such file
    for each of them (`siglip.b8.stablehlo`). Returns what was written.

    Raises UserError where one exists, and for bytecode of any batch or of several platforms."""
    path = as_path(path)
    programs = {path: program}
    if batches:
        programs = {
            path.with_name(f"{path.stem}.b{batch}{path.suffix}"): dataclasses.replace(program, batch=batch)
            for batch in batches
        }
    for file, each in programs.items():
        refuse_existing(file)
        if each.bytecode and (each.batch is None or len(each.platforms) > 1):
            raise UserError("portable bytecode is of one batch size and one platform: give batches, and one platform")
    for file, each in programs.items():
        _write(encoder, file, each)
    return list(programs)


def export_again(encoder: Encoder, path: epath.PathLike) -> epath.Path:
    """Writes a file anew from the encoder it was made from, when JAX has come to read it no more: the program that stands beside it.
    Raises UserError where what stands there is damaged, or speaks of another encoder."""
    path = as_path(path)
    if not facts_file(path).exists():
        raise UserError(
            f"there is no exported program {path} with {facts_file(path).name} beside it; without --again one is written"
        )
    facts = read_json(facts_file(path), dict[str, Any])
    if not is_sealed(facts):
        raise UserError(
            f"{facts_file(path)} is not as `regcache export` wrote it (its hash differs); export to a new name"
        )
    program = Program.of(facts)
    own = json.loads(json.dumps(metadata(encoder, program)))
    facts.setdefault("form", metadata(encoder, ANY)["form"])  # the plain one, which all had before there were others
    if differing := [name for name, value in own.items() if name != "versions" and facts.get(name) != value]:
        raise UserError(f"{path} was made from another encoder: {', '.join(differing)} differ; export to a new name")
    _write(encoder, path, program)
    return path


def exported(encoder: Encoder, program: Program) -> stablehlo.Exported:
    """The image tower as `jax.export` holds it."""
    shape, dtype = input_of(encoder, program)
    (any_number,) = stablehlo.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((program.batch or any_number, *shape), dtype)
    with _no_source_locations():
        return stablehlo.export(jax.jit(serving_function(encoder, program)), platforms=program.platforms)(images)


def _write(encoder: Encoder, path: epath.Path, program: Program) -> None:
    made = exported(encoder, program)
    content, facts = bytes(made.serialize()), metadata(encoder, program)
    if program.bytecode:
        facts[BYTECODE] = sha256(made.mlir_module_serialized)
        write_whole(path.with_name(path.name + ".mlirbc"), made.mlir_module_serialized)
    write_json(facts_file(path), seal({**facts, PROGRAM: sha256(content)}))
    write_whole(path, content)


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


def load(path: epath.PathLike) -> Callable[[Shaped[Array, "B Y X 3"]], Float[Array, "B ..."]]:
    """An exported tower as a function from what it takes to features (or patches, as it was exported).

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
