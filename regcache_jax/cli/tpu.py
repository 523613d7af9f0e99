"""`regcache tpu` and `regcache export`."""

from __future__ import annotations

import dataclasses

import click

from regcache_jax.cli.options import json_option, read_scheme
from regcache_jax.cli.screen import print_table, progress, say, write_json


@click.command()
@click.argument("name")
@click.option(
    "--topology", default="v5e:2x2", show_default=True, help="What is compiled for: v4, v5e, v5p or v6e, as v5e:2x2."
)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Pictures a core.")
@click.option("--scheme", "scheme_name", default="w8a8", show_default=True, help="Scheme of the integer programs.")
@click.option("--registers", type=click.Path(dir_okay=False), help="Register plan; without one, a typical plan.")
@click.option("--integer-head", is_flag=True, help="Attention pooling in integers too, as `quantize --integer-head`.")
@click.option("--sweep-batch", is_flag=True, help="Give each program the batch that suits it best.")
@json_option
def tpu(
    name: str,
    topology: str,
    batch: int,
    scheme_name: str,
    registers: str | None,
    integer_head: bool,
    sweep_batch: bool,
    json_file: str | None,
) -> None:
    """Ask the TPU compiler what an encoder costs, without a TPU.

    NAME is one of the catalog; the extra `tpu` must be installed. Cycles are the compiler's own estimate; instructions
    without one are counted beside them.
    """
    from regcache_jax.models.plan_file import load_plan
    from regcache_jax.tpu import ask as compiler

    plan = None if registers is None else load_plan(registers)[0]
    scheme = read_scheme(scheme_name, "static", "channel")
    if scheme is not None and integer_head:
        scheme = dataclasses.replace(scheme, also=("head",))
    with progress(f"compiling {name} for {topology}"):
        found = compiler.report(name, topology, batch, scheme, plan, sweep_batch)
    columns = tuple(column for column in found["programs"][0] if column != "tried")
    print_table(
        f"{name} on {topology}", columns, [tuple(row.get(column) for column in columns) for row in found["programs"]]
    )
    write_json(json_file, found)


@click.command()
@click.argument("model", type=click.Path())
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="File to write; must not exist.")
@click.option("--platforms", default="cpu,cuda,tpu", show_default=True, help="What the artefact runs on.")
@click.option(
    "--topology", help="Find the best batch for a TPU (v5e:2x2, say) and note it in the metadata; takes minutes."
)
def export(model: str, out: str, platforms: str, topology: str | None) -> None:
    """Write the image tower of MODEL as one StableHLO file.

    It has int8 inside and runs with jax alone.
    """
    from regcache_jax.models import export as artefacts
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.tpu import ask as compiler

    loaded = checkpoints.load(model)
    encoder, micro_batch = loaded.encoder, None
    if topology is not None:
        with progress(f"compiling {model} for {topology}"):
            micro_batch = compiler.best_micro_batch(encoder.spec, topology, encoder.scheme, encoder.plan)
    with progress(f"exporting {model}"):
        path = artefacts.export(encoder, out, tuple(part for part in platforms.split(",") if part), micro_batch)
    say(f"{model} -> {path}")
