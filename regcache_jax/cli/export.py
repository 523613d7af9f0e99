"""`regcache export`."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import click

from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import progress, say
from regcache_jax.core.errors import UserError
from regcache_jax.core.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Where it is written, what it takes and gives, and what it runs on."""

    out: str = option("File to write; must not exist.", path="any")
    platforms: tuple[str, ...] = option("What the artefact runs on.", ("cpu", "cuda", "tpu"))
    batches: tuple[int, ...] | None = option(
        "A file for each of these batch sizes (NAME.b8.stablehlo) instead of one for any; of a Triton model, those it is compiled for.",
        None,
    )
    pictures: str | None = option(
        "Take uint8 pictures of this many rows and columns (480x640), and preprocess them inside.",
        None,
        unit="size",
    )
    outputs: Literal["float32", "bfloat16"] = option("Dtype of what it gives.", "float32")
    bytecode: bool = option("Write portable StableHLO too (NAME.mlirbc), of one batch size and platform.", False)
    triton: bool = option("Write a model of a Triton repository, or its next version: --out REPOSITORY/NAME.", False)
    topology: str | None = option(
        "The TPU it is for (v5e:2x2, say): its form, and its best batch noted in the metadata; takes minutes.", None
    )
    again: bool = option(
        "The file exists and JAX reads it no more: write it anew, as what stands beside it says.", False
    )

    def __post_init__(self) -> None:
        others = dataclasses.replace(self, again=False) if self.again else self
        if self.again and others != ExportArgs(out=self.out):
            raise UserError("--again takes everything but --out from what stands beside the file")
        if self.pictures is not None and not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", self.pictures):
            raise UserError(f"--pictures takes rows and columns below 10,000, such as 480x640, got {self.pictures!r}")

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns of the pictures."""
        if self.pictures is None:
            return None
        rows, columns = map(int, self.pictures.split("x"))
        return rows, columns


@click.command()
@click.argument("model", type=click.Path())
@takes(chosen=ExportArgs)
def export(model: str, chosen: ExportArgs) -> None:
    """Write the image tower of MODEL as one StableHLO file.

    It has int8 inside and runs with jax alone.
    """
    from regcache_jax.models import export as artefacts
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.models.triton import export_triton
    from regcache_jax.tpu import ask as compiler

    encoder = checkpoints.load(model).encoder
    if chosen.again:
        with progress(f"exporting {model} again"):
            say(f"{model} -> {artefacts.export_again(encoder, chosen.out)}")
        return
    batches = tuple(sorted(set(chosen.batches or ())))
    program = artefacts.Program(chosen.platforms, None, chosen.size, chosen.outputs, bytecode=chosen.bytecode)
    if chosen.topology is not None:
        with progress(f"compiling {model} for {chosen.topology}"):
            best = compiler.best_micro_batch(encoder.spec, chosen.topology, encoder.scheme, encoder.plan)
        program = dataclasses.replace(program, chip=chosen.topology.split(":")[0], micro_batch=best)
    with progress(f"exporting {model}"):
        made = (
            [export_triton(encoder, chosen.out, program, batches)]
            if chosen.triton
            else artefacts.export(encoder, chosen.out, program, batches)
        )
    for path in made:
        say(f"{model} -> {path}")
