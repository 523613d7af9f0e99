"""`regcache tpu`."""

from __future__ import annotations

import dataclasses

import click

from regcache_jax.cli.arguments import JsonArgs, SchemeArgs
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import print_table, progress, say, write_json
from regcache_jax.core.options import like, option


@dataclasses.dataclass(frozen=True)
class TpuArgs:
    """What is compiled, and for what."""

    topology: str = option("What is compiled for: v4, v5e, v5p or v6e, as v5e:2x2.", "v5e:2x2")
    batch: int = option("Pictures a core.", 32, unit="pictures", least=1)
    scheme: str = like(SchemeArgs, "scheme", help="Scheme of the integer programs.")
    registers: str | None = option("Register plan; without one, a typical plan.", None, path="file")
    integer_head: bool = option("Attention pooling in integers too, as `quantize --integer-head`.", False)
    sweep_batch: bool = option("Give each program the batch that suits it best.", False)


@click.command()
@click.argument("name")
@takes(chosen=TpuArgs, output=JsonArgs)
def tpu(name: str, chosen: TpuArgs, output: JsonArgs) -> None:
    """Ask the TPU compiler what an encoder costs, without a TPU.

    NAME is one of the catalog; the extra `tpu` must be installed. Cycles are the compiler's own estimate; instructions
    without one are counted beside them.
    """
    from regcache_jax.core.scheme import Scheme
    from regcache_jax.models.plan_file import load_plan
    from regcache_jax.tpu import ask as compiler

    plan = None if chosen.registers is None else load_plan(chosen.registers)[0]
    scheme = Scheme.named(chosen.scheme)
    if scheme is not None and chosen.integer_head:
        scheme = dataclasses.replace(scheme, also=("head",))
    with progress(f"compiling {name} for {chosen.topology}"):
        found = compiler.report(name, chosen.topology, chosen.batch, scheme, plan, chosen.sweep_batch)
    columns = tuple(column for column in found["programs"][0] if column != "tried")
    print_table(
        f"{name} on {chosen.topology}",
        columns,
        [tuple(row.get(column) for column in columns) for row in found["programs"]],
    )
    if found["advice"] is not None:
        say(found["advice"])
    write_json(output.json, found)
