"""A model of a Triton repository around an exported program.

    NAME/config.pbtxt                   input, output, batch sizes, dynamic batching
    NAME/1/model.py                     the server's Python back end (`triton_model.py`), which needs jax alone
    NAME/1/program.stablehlo            the program, of any batch size
    NAME/1/program.stablehlo.json       its facts and its hash, which model.py compares before it runs it

Exported into a model that is there, a program becomes the next version, which the server takes up without a pause.
"""

from __future__ import annotations

import re
from pathlib import Path

from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.bounded import read_text
from regcache_jax.files.paths import whole_folder
from regcache_jax.files.places import as_path
from regcache_jax.models.export import ANY, Program, export, metadata

BATCHES = (1, 8, 32)
"""Batch sizes for which the server compiles the program, where none are asked for."""
DELAY = 2000
"""Microseconds that a request may wait for others."""
TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "bfloat16": "TYPE_BF16"}

CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {largest}
input [ {{ name: "images" data_type: {input_type} dims: {input_dims} }} ]
output [ {{ name: "features" data_type: {output_type} dims: {output_dims} }} ]
dynamic_batching {{ preferred_batch_size: {sizes} max_queue_delay_microseconds: {delay} }}
instance_group [ {{ kind: KIND_MODEL count: 1 }} ]
"""


def export_triton(
    encoder: Encoder, folder: epath.PathLike, program: Program = ANY, batches: tuple[int, ...] = ()
) -> epath.Path:
    """Writes the model `folder` of a repository, or its next version where it is there, and returns the version's folder. The server
    compiles the program for `batches`, and fills smaller ones up.

    Raises UserError for bytecode, and where the model that is there takes or gives something else."""
    folder = as_path(folder)
    if program.bytecode:
        raise UserError("a Triton model runs the program by JAX and needs no --bytecode")
    config = config_of(encoder, folder.name, program, batches or BATCHES)
    if not folder.exists():
        with whole_folder(folder) as beside:
            (beside / "config.pbtxt").write_text(config)
            _write_version(encoder, beside / "1", program)
        return folder / "1"
    if not (folder / "config.pbtxt").exists() or read_text(folder / "config.pbtxt") != config:
        raise UserError(f"{folder} is there, and its config.pbtxt is not this program's; choose another name")
    versions = [int(entry.name) for entry in folder.iterdir() if re.fullmatch("[1-9][0-9]*", entry.name)]
    version = folder / str(max(versions, default=0) + 1)
    with whole_folder(version) as beside:
        _write_version(encoder, beside, program)
    return version


def config_of(encoder: Encoder, name: str, program: Program, batches: tuple[int, ...]) -> str:
    """The text of config.pbtxt."""
    facts = metadata(encoder, program)
    return CONFIG.format(
        name=name,
        largest=max(batches),
        input_type=TYPES[facts["input"]["dtype"]],
        input_dims=facts["input"]["shape"][1:],
        output_type=TYPES[facts["output"]["dtype"]],
        output_dims=facts["output"]["shape"][1:],
        sizes=sorted(batches),
        delay=DELAY,
    )


def _write_version(encoder: Encoder, folder: epath.Path, program: Program) -> None:
    folder.mkdir(exist_ok=True)
    export(encoder, folder / "program.stablehlo", program)
    (folder / "model.py").write_text(Path(__file__).with_name("triton_model.py").read_text())
