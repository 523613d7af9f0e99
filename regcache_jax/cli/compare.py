"""`regcache compare`: recipes x bits x {no registers, registers}, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from regcache_jax.cli.options import cost_of, cost_option, data_options, read_data, read_images, read_plan, recipes_of
from regcache_jax.cli.screen import digits, print_table, progress, say

if TYPE_CHECKING:
    import numpy as np

    from regcache_jax.data import Dataset
    from regcache_jax.models.folder import Model
    from regcache_jax.studies.grid import Entry


def bits_of(text: str) -> tuple[str, ...]:
    """`8,6,4` or `w4a8,w8a8` as names of schemes."""
    parts = [part for part in text.replace(" ", "").split(",") if part]
    return tuple(f"w{part}a{part}" if part.isdigit() else part for part in parts)


def accuracy_of(model: Model, data: Dataset) -> Callable[[np.ndarray], Mapping[str, float]] | None:
    """Zero-shot accuracy from the pictures' features; None without a text tower or without classes."""
    import jax.numpy as jnp
    import numpy as np

    from regcache_jax.data.prompts import class_names, templates
    from regcache_jax.evaluation.zero_shot import class_scores, class_vectors, count_hits, metrics_from_counts

    labels = [data[index].label for index in range(len(data))]
    if model.encoder.spec.text is None or data.classnames is None or None in labels:
        return None
    known = jnp.asarray(np.array(labels, np.int32))
    vectors = class_vectors(model.encoder, model.tokenize, class_names(data).texts, templates(data).texts)

    def evaluate(features: np.ndarray) -> Mapping[str, float]:
        counts = count_hits(jnp.asarray(class_scores(features, vectors)), known, jnp.ones(len(known), bool))
        return metrics_from_counts({name: np.asarray(count) for name, count in counts.items()})

    return evaluate


@click.command()
@click.argument("model", type=click.Path())
@data_options("test", None)
@click.option("--bits", default="8,6,4", show_default=True, help="8 is w8a8; w4a8 and the like also do.")
@click.option(
    "--methods", help="Recipes, with commas; `all`; by default those that are quick (see docs/quantization.md)."
)
@click.option("--calibration-split", default="train", show_default=True, help="Split that gives scales and registers.")
@click.option("--calibration", type=click.IntRange(1), default=256, show_default=True, help="So many pictures of it.")
@click.option(
    "--registers", type=click.Path(dir_okay=False), help="This plan for all bits, instead of searching for some."
)
@click.option("--no-registers", is_flag=True, help="Compare without registers only.")
@cost_option
@click.option(
    "--out", required=True, type=click.Path(file_okay=False), help="Folder; a comparison that was killed goes on in it."
)
def compare(
    model: str,
    dataset: str,
    data_dir: str | None,
    split: str | None,
    limit: int | None,
    batch_size: int,
    bits: str,
    methods: str | None,
    calibration_split: str,
    calibration: int,
    registers: str | None,
    no_registers: bool,
    cost_name: str | None,
    out: str,
) -> None:
    """Compare recipes at 8, 6 and 4 bits, with and without registers.

    Scales and registers come from the calibration split; error (against the float features), accuracy and cost are those on
    DATA. Writes compare.json, .csv, .md and .png.
    """
    from regcache_jax.core.errors import UserError
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.studies import grid
    from regcache_jax.studies.plans import find_plans
    from regcache_jax.studies.recipes import scheme_of

    wanted, recipes = bits_of(bits), recipes_of(methods)
    for each in wanted:
        for recipe in recipes:
            scheme_of(recipe, each)
    price, unit = cost_of(cost_name or "model")
    if not wanted or not recipes:
        raise UserError("--bits and --methods must each name something")
    if registers is not None and no_registers:
        raise click.UsageError("--registers and --no-registers exclude each other")
    loaded = checkpoints.load(model)
    data = read_data(dataset, data_dir, split, limit, "test")
    pictures = read_images(loaded, data)
    drawn = read_images(loaded, read_data(dataset, data_dir, calibration_split, calibration, calibration_split))
    plan = read_plan(registers, loaded)
    plans = {} if plan is None else dict.fromkeys(wanted, plan)
    if plan is None and not no_registers:
        with progress("searching for registers") as update:

            def tell(done: int, planned: int, best: float) -> None:
                update(1, total=planned, note=f"best error {best:.3g}")

            plans = find_plans(loaded.encoder, drawn, wanted, out, progress=tell)
    evaluate = accuracy_of(loaded, data)
    reference = grid.features_of(loaded.encoder.with_plan(None), pictures, batch_size)
    with progress("comparing") as update:

        def report(number: int, total: int, entry: Entry) -> None:
            update(1, total=total, note=entry.name)

        entries = grid.compare(
            loaded.encoder, drawn, pictures, out,
            recipes=recipes, bits=wanted, plans=plans, evaluate=evaluate, cost_of=price, cost_unit=unit, progress=report,
        )  # fmt: skip
    float_metrics = {} if evaluate is None else evaluate(reference)
    written = grid.write_tables(
        entries, out, loaded.encoder, dataset=data.name, float_metrics=float_metrics, cost_unit=unit
    )
    columns = ("bits", "recipe", "registers", "error", "cost", "acc1", "note")
    front = {id(entry) for each in wanted for entry in grid.pareto([e for e in entries if e.bits == each])}
    rows = [
        (
            entry.bits, entry.recipe, "yes" if entry.registers else "no", digits(entry.error), digits(entry.cost),
            entry.metrics.get("acc1"), entry.fault or entry.note or ("*" if id(entry) in front else ""),
        )
        for entry in entries
    ]  # fmt: skip
    print_table(f"{loaded.encoder.spec.name} on {data.name} ({data.split}, n = {len(data)})", columns, rows)
    say(f"* nothing is better in both error and cost ({unit})")
    if float_metrics:
        say(f"float: acc1 {float_metrics['acc1']:.3f}")
    say(f"{', '.join(Path(path).name for path in written)} -> {out}")
