"""`regcache tpu` and `regcache gpu`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regcache_jax.cli.arguments import JsonArgs, SchemeArgs
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import print_table, progress, say, write_json
from regcache_jax.core.counted import counted
from regcache_jax.core.options import like, option

if TYPE_CHECKING:
    from regcache_jax.core.plan import RegisterPlan
    from regcache_jax.core.scheme import Scheme
    from regcache_jax.core.spec import EncoderSpec

Column = Callable[[dict[str, Any]], Any]
"""A figure of a report's row."""


@dataclasses.dataclass(frozen=True)
class ProgramArgs:
    """How the integer programs are quantised, and what registers they have."""

    scheme: str | None = like(
        SchemeArgs, "scheme", default=None, help="Scheme of the integer programs; the folder's own, or w8a8."
    )
    registers: str | None = option("Register plan; without one the folder's own, or a typical plan.", None, path="file")
    integer_head: bool = option("Attention pooling in integers too, as `quantize --integer-head`.", False)

    def read(self, name: str) -> tuple[EncoderSpec | str, Scheme | None, RegisterPlan | None]:
        """The encoder that a folder holds or a name of the catalog stands for, the scheme, and the plan."""
        from regcache_jax.core.scheme import Scheme
        from regcache_jax.models import folder
        from regcache_jax.models.plan_file import load_plan

        encoder = folder.load(name).encoder if Path(name).is_dir() else None
        scheme = Scheme.named(self.scheme or "w8a8")
        if encoder is not None and encoder.scheme is not None and self.scheme is None:
            scheme = encoder.scheme
        if scheme is not None and self.integer_head:
            scheme = dataclasses.replace(scheme, also=("head",))
        plan = None if encoder is None else encoder.plan
        if self.registers is not None:
            plan = load_plan(self.registers)[0]
        return name if encoder is None else encoder.spec, scheme, plan


@dataclasses.dataclass(frozen=True)
class TpuArgs:
    """What is compiled for a TPU."""

    topology: str = option("What is compiled for: v4, v5e, v5p or v6e, as v5e:2x2.", "v5e:2x2")
    batches: tuple[int, ...] | None = option(
        "Pictures a core, as 1,2,4,8; without it the batch that suits each program best, which takes minutes.",
        None,
        least=1,
    )


@dataclasses.dataclass(frozen=True)
class GpuArgs:
    """What is compiled for a GPU."""

    target: str = option("What is compiled for: h100, a100 or l4.", "h100")
    batches: tuple[int, ...] = option("Pictures, as 1,8,32.", (32,), least=1)
    cublas: bool = option("Products by cuBLAS alone, as a device may find them faster than Triton's.", False)


TPU_COLUMNS: dict[str, Column] = {
    "cycles/image": lambda row: round(row["cycles_per_image"]),
    "images/s": lambda row: round(row["images_per_second"]),
    "MB kept": lambda row: round(row["argument_bytes"] / 1e6),
    "MB beside": lambda row: round(row["temp_bytes"] / 1e6),
}
GPU_COLUMNS: dict[str, Column] = {
    "us": lambda row: row["seconds_per_image"] * 1e6,
    "MB": lambda row: round(row["bytes_per_image"] / 1e6),
    "kernels": lambda row: row["kernels"],
    "products": lambda row: ", ".join(f"{count} {dtype}" for dtype, count in sorted(row["products"].items())),
}


def short(program: str) -> str:
    """The name of a program as a narrow table has it."""
    return program.replace("int8+registers+", "+").replace("int8+", "+")


def show_programs(title: str, columns: dict[str, Column], rows: list[dict[str, Any]]) -> None:
    """A table of programs, a row each and 80 columns wide: the batch, the figures (the first is what it costs), and the cost to that of the
    Flax peer at the same batch, or each at its best. Then what could not be compiled, and the forms."""
    first = next(iter(columns.values()))
    done = [row for row in rows if "fault" not in row]
    peers = {row["batch"]: first(row) for row in done if row["program"] == "flax-bf16"}
    best = min(peers.values(), default=None) if "tried" in rows[0] else None
    cells = []
    for row in done:
        peer = best or peers.get(row["batch"])
        figures = [column(row) for column in columns.values()]
        cells.append((short(row["program"]), row["batch"], *figures, None if peer is None else first(row) / peer))
    print_table(title, ("program", "batch", *columns, "/ flax"), cells)
    for row in rows:
        if "fault" in row:
            say(f"{row['program']} at batch {row['batch']}: {row['fault']}")
    for form in dict.fromkeys(row["form"] for row in done if row["program"].startswith("int8")):
        say(f"int8 in the form: {form}")


def show_kinds(rows: list[dict[str, Any]]) -> None:
    """Where the kernels of each program are, and what they move and take, by kind."""
    cells = [
        (short(row["program"]), row["batch"], kind, each["kernels"], each["bytes"] / 1e6, each["seconds"] * 1e6)
        for row in rows
        for kind, each in row["by_kind"].items()
    ]
    print_table("by kind of kernel", ("program", "batch", "kind", "kernels", "MB", "us"), cells)


@click.command()
@click.argument("name")
@takes(chosen=TpuArgs, asked=ProgramArgs, output=JsonArgs)
def tpu(name: str, chosen: TpuArgs, asked: ProgramArgs, output: JsonArgs) -> None:
    """Ask the TPU compiler what an encoder costs, without a TPU.

    NAME is a model folder or one of the catalog; the extra `tpu` must be installed. Cycles are the compiler's own estimate.
    """
    from regcache_jax.tpu import ask as compiler

    encoder, scheme, plan = asked.read(name)
    with progress(f"compiling {name} for {chosen.topology}"):
        found = compiler.report(encoder, chosen.topology, chosen.batches, scheme, plan)
    show_programs(f"{name} on {chosen.topology}", TPU_COLUMNS, found["programs"])
    hidden = {row["program"]: row["unestimated"] for row in found["programs"] if row.get("unestimated")}
    for program, count in hidden.items():
        say(f"{program}: no estimate for {counted(count, 'instruction')}")
    if found["advice"] is not None:
        say(found["advice"])
    write_json(output.json, found)


@click.command()
@click.argument("name")
@takes(chosen=GpuArgs, asked=ProgramArgs, output=JsonArgs)
def gpu(name: str, chosen: GpuArgs, asked: ProgramArgs, output: JsonArgs) -> None:
    """Ask XLA's GPU compiler what an encoder costs, without a GPU.

    NAME is a model folder or one of the catalog; the extra `cuda` must be installed. Microseconds are a bound by bytes and products, no
    time: programs are not tuned, and every kernel reads from memory.
    """
    from regcache_jax.tpu import gpu as compiler

    encoder, scheme, plan = asked.read(name)
    with progress(f"compiling {name} for {chosen.target}"):
        found = compiler.report(encoder, chosen.target, chosen.batches, scheme, plan, triton=not chosen.cublas)
    show_programs(f"{name} on {chosen.target}, an image", GPU_COLUMNS, found["programs"])
    by_cublas = [row["program"] for row in found["programs"] if row["library"] == "cuBLAS"]
    for program in [] if chosen.cublas else dict.fromkeys(by_cublas):
        say(f"{program}: products by cuBLAS, as XLA has no tiles for Triton's without tuning")
    show_kinds(found["programs"])
    write_json(output.json, found)
