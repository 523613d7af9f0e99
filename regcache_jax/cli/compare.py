"""`regcache compare`: recipes x bits x {no registers, registers}, in one table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from regcache_jax.cli.arguments import CostArgs, LabelFreeArgs, TestedData, read_images, read_plan, recipes_of
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import BarsOfCells, digits, foretell, print_table, say, tell, write_text
from regcache_jax.core.errors import UserError
from regcache_jax.core.options import option
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.studies.recipes import QUICK

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from regcache_jax.data import Dataset
    from regcache_jax.models.folder import Model
    from regcache_jax.report.compared import Tried
    from regcache_jax.studies.cells import Entry
    from regcache_jax.studies.grid import Judge


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareArgs:
    """What is tried, on which pictures it is calibrated, and where the tables go."""

    bits: tuple[str, ...] = option("8 is w8a8; w4a8 and the like also do.", ("8", "6", "4"))
    methods: tuple[str, ...] = option(
        "Recipes, with commas, or `all` (see docs/quantization.md); smoothquant+erq@group and the like do as well.",
        QUICK,
    )
    calibration_split: str = option("Split that gives scales and registers.", "train")
    calibration: int = option("So many pictures of it.", 256, unit="pictures", least=1)
    registers: str | None = option("This plan for all bits, instead of searching for some.", None, path="file")
    no_registers: bool = option("Compare without registers only.", False)
    out: str = option("Folder; a comparison that was killed goes on in it.", path="folder")

    def __post_init__(self) -> None:
        if self.registers is not None and self.no_registers:
            raise UserError("--registers and --no-registers exclude each other")

    @property
    def schemes(self) -> tuple[str, ...]:
        """`8,6,4` or `w4a8,w8a8` as names of schemes."""
        return tuple(f"w{each}a{each}" if each.isdigit() else each for each in self.bits)


def accuracy_of(model: Model, data: Dataset) -> Judge | None:
    """Zero-shot accuracy from the pictures' features; None without a text tower, a tokenizer (which is said) or classes."""
    import numpy as np

    from regcache_jax.data.prompts import class_names, templates
    from regcache_jax.evaluation.measure import Labelled, measure
    from regcache_jax.evaluation.zero_shot import class_vectors
    from regcache_jax.files.identity import content_hash
    from regcache_jax.studies.grid import Judge

    labels = [data[index].label for index in range(len(data))]
    if model.encoder.spec.text is None or data.classnames is None or None in labels:
        return None
    try:
        tokenize = model.tokenize
    except UserError as error:
        tell(f"accuracy is left out: {error}")
        return None
    known = np.array(labels, np.int32)
    vectors = class_vectors(model.encoder, tokenize, class_names(data).texts, templates(data).texts)

    def evaluate(features: np.ndarray) -> Mapping[str, float]:
        return measure(Labelled(features, known), lambda rows: rows @ vectors.T).metrics

    return Judge(content_hash((known, vectors)), evaluate)


@click.command()
@click.argument("model", type=click.Path())
@takes(pictures=TestedData, error=LabelFreeArgs, chosen=CompareArgs, cost=CostArgs)
def compare(model: str, pictures: TestedData, error: LabelFreeArgs, chosen: CompareArgs, cost: CostArgs) -> None:
    """Compare recipes at some bits, with and without registers.

    Scales and registers come from the calibration split (of a folder without splits from four pictures in five, the fifth is
    measured on); error (against the float encoder, of what --objective says), accuracy and
    cost are those on DATA. Writes compare.json, .csv, .md, .svg (error over cost) and .html.
    """
    import numpy as np

    from regcache_jax.files.lock import held
    from regcache_jax.files.workdir import Workdir
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.report.compared import compared_page, compared_sheet
    from regcache_jax.studies import grid, sheets
    from regcache_jax.studies.cells import cells_of
    from regcache_jax.studies.choice import equals
    from regcache_jax.studies.pace import Pace
    from regcache_jax.studies.plans import find_plans

    bits, recipes = chosen.schemes, recipes_of(chosen.methods)
    cells_of(recipes, bits, {})
    price = cost.price()
    if not bits or not recipes:
        raise UserError("--bits and --methods must each name something")
    loaded = checkpoints.load(model)
    data, others = _two_sets(pictures, chosen)
    tested, drawn = read_images(loaded, data), read_images(loaded, others)
    plan = read_plan(chosen.registers, loaded)
    plans = {} if plan is None else dict.fromkeys(bits, plan)
    searching, pace = SearchConfig(objective=error.objective), Pace(loaded.encoder)
    searches = 0 if plan is not None or chosen.no_registers else len(bits)
    number = len(bits) * len(recipes) * (1 if chosen.no_registers else 2)
    foretell(
        searches * pace.search(len(drawn), searching) + pace.cells(number, len(drawn), len(tested)),
        "fewer --methods and --bits take less, and what is done is kept",
    )
    with held(chosen.out, folder=True), BarsOfCells("comparing") as bars:
        workdir = Workdir(chosen.out, bars)
        if searches:
            plans = find_plans(loaded.encoder, drawn, bits, workdir, searching)
        bench = grid.Bench(
            loaded.encoder, drawn, tested, plans, accuracy_of(loaded, data), price, pictures.batch_size, error.objective
        )
        entries = grid.compare(bench, cells_of(recipes, bits, plans), workdir)
    float_metrics = {} if bench.judge is None else bench.judge.metrics(np.asarray(bench.reference.pooled))
    written = sheets.write_tables(
        entries, chosen.out, loaded.encoder, dataset=data.name, float_metrics=float_metrics, cost_unit=price.unit
    )
    columns = ("bits", "recipe", "registers", "error", "±", "worst picture", "cost", "acc1", "note")
    title = f"{loaded.encoder.spec.name} on {data.name} ({data.split}, n = {len(data)})"
    of_bits = [[entry for entry in entries if entry.cell.bits == each] for each in bits]
    front = {entry.name for group in of_bits for entry in sheets.pareto(group)}
    equal = {entry.name for group in of_bits for entry in equals(group)}
    print_table(
        title,
        columns,
        [_row(entry, ("*" if entry.name in front else "") + ("=" if entry.name in equal else "")) for entry in entries],
    )
    say(f"* nothing is better in both error and cost ({price.unit}); = not told from the least error of its bits")
    if float_metrics:
        say(f"float: acc1 {float_metrics['acc1']:.3f}")
    tried: dict[str, list[Tried]] = {}
    for entry in entries:
        tried.setdefault(entry.cell.bits, []).append(_tried(entry, entry.name in front, entry.name in equal))
    write_text(f"{chosen.out}/compare.html", compared_page(title, tried, price.unit))
    write_text(f"{chosen.out}/compare.svg", compared_sheet(title, tried, price.unit))
    say(f"{', '.join(Path(path).name for path in written)}, compare.svg, compare.html -> {chosen.out}")


def _two_sets(pictures: TestedData, chosen: CompareArgs) -> tuple[Dataset, Dataset]:
    """The pictures that are measured on, and those that give scales and registers: two splits, or two parts of a folder that has none."""
    from regcache_jax.data.splits import has_splits, held_out

    split, count = chosen.calibration_split, chosen.calibration
    if pictures.dataset != "folder" or pictures.split is not None or has_splits(pictures.data_dir, split, "test"):
        return pictures.open(), pictures.other(split, count)
    others, tested = held_out(pictures.open())
    if not len(tested):
        raise UserError(f"{pictures.data_dir} holds too few pictures: some are measured on, others give scales")
    tell(tested.notes[-1])
    step = max(1, len(others) // count)
    return tested, others.chosen(list(range(0, len(others), step))[:count])


def _tried(entry: Entry, front: bool, tied: bool) -> Tried:
    """An entry as the page shows it."""
    from regcache_jax.report.compared import Tried

    return Tried(
        entry.cell.recipe, entry.cell.plan is not None, entry.cost, entry.error, entry.jitter, entry.worst,
        entry.metrics.get("acc1"), front, tied, entry.fault or entry.note or "",
    )  # fmt: skip


def _row(entry: Entry, mark: str) -> tuple[str | float | None, ...]:
    """An entry as it is shown."""
    cell = entry.cell
    return (
        cell.bits, cell.recipe, "no" if cell.plan is None else "yes", digits(entry.error),
        digits(entry.jitter), digits(entry.worst), digits(entry.cost),
        entry.metrics.get("acc1"), entry.fault or entry.note or mark,
    )  # fmt: skip
