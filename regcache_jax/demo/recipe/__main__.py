"""`python -m regcache_jax.demo.recipe --data FOLDER --out FOLDER [--steps N]`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from regcache_jax.core.errors import UserError
from regcache_jax.data import emoji
from regcache_jax.demo.recipe.drawings import DrawingSet, bundled_drawings, hold_out, read_drawings
from regcache_jax.demo.recipe.export import FACTOR
from regcache_jax.demo.recipe.phases import BATCH, PHASES, shortened
from regcache_jax.demo.recipe.run import Recipe, cook


@click.command(help="Train an encoder like the bundled one and write its model folder. A run that was stopped goes on.")
@click.option(
    "--data", type=click.Path(file_okay=False), help="Unpacked drawings; default: the bundled ones (for trying)."
)
@click.option("--out", required=True, type=click.Path(file_okay=False), help="States while it trains, then OUT/model.")
@click.option(
    "--steps", type=click.IntRange(min=1), help="At most N steps a phase; default: all of them, hours on a CPU."
)
@click.option("--batch", default=BATCH, show_default=True, type=click.IntRange(min=4), help="Pictures a step.")
@click.option("--seed", default=1, show_default=True, help="Of weights, batches and draws.")
@click.option(
    "--factor", default=FACTOR, show_default=True, help="How much export enlarges the outliers (1: not at all)."
)
@click.option(
    "--choose-concepts", is_flag=True, help="Choose 204 concepts anew instead of taking the bundled pictures'."
)
def main(
    data: str | None, out: str, steps: int | None, batch: int, seed: int, factor: float, choose_concepts: bool
) -> None:
    """The command."""
    phases = PHASES if steps is None else shortened(PHASES, steps)
    recipe = Recipe(phases, batch, seed, factor, choose_concepts)
    try:
        folder = cook(_drawings(data, choose_concepts), out, recipe, say=lambda line: print(line, flush=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(
        f"wrote {folder}; try: regcache evaluate {folder} --dataset emoji --split test --task zeroshot_classification"
    )


def _drawings(data: str | None, choose_concepts: bool) -> DrawingSet:
    if data is None:
        return bundled_drawings()
    return hold_out(read_drawings(Path(data), None if choose_concepts else emoji.class_names()))


if __name__ == "__main__":
    main()
