"""The tables of docs/quantization.md: every recipe, with and without registers, over several draws of the calibration images.

    python benchmarks/recipes.py --out build/recipes [--encoder emoji,sinks] [--draws 5] [--bits w8a8,w6a6,w4a4] [--recipes ...]

`emoji`: accuracy on Twemoji pictures. Planted encoders (`sinks`, `class-token`, `channel`, `none`): label-free error. What is
shown is measured on pictures that no calibration, search or choice has seen; `auto` is the row that was chosen for each draw by
label-free error on yet other pictures. Resumable; a draw is one `compare`. docs/quantization.md says how long it takes.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from regcache_jax import Encoder, RegisterPlan, bundled_model, load, plant
from regcache_jax.core.observer import Observer
from regcache_jax.data import emoji
from regcache_jax.data.batches import load_images
from regcache_jax.data.sources import open_dataset
from regcache_jax.evaluation.zero_shot import class_vectors
from regcache_jax.files.workdir import Workdir
from regcache_jax.studies.cells import Cell, Entry, cells_of
from regcache_jax.studies.grid import Bench, Judge, compare, features_of, label_free_error
from regcache_jax.studies.plans import find_plans
from regcache_jax.studies.recipes import QUICK
from regcache_jax.studies.sheets import write_tables

PLANTED = {
    "sinks": ("patch sinks",),
    "class-token": ("class-token outlier",),
    "channel": ("channel outlier",),
    "none": (),
}
Accuracy = Callable[[np.ndarray], float]
"""From the tested pictures' features."""
CHOICE = 128
"""Pictures by which `auto` chooses, seen by nothing else."""


def bundled(num_tested: int) -> tuple[Encoder, np.ndarray, np.ndarray, Accuracy]:
    """The encoder, pictures to draw from, tested pictures (evenly from all), and what they are tested by."""
    model = load(bundled_model())
    train, test = (open_dataset("emoji", split=split) for split in ("train", "test"))
    rows = np.linspace(0, len(test) - 1, min(num_tested, len(test))).astype(int)
    labels = np.array([concept for _, concept, _ in emoji.pictures("test")])[rows]
    vectors = class_vectors(model.encoder, model.tokenize, emoji.class_names(), emoji.TEMPLATES)

    def accuracy(features: np.ndarray) -> float:
        return float(np.mean(np.argmax(features @ vectors.T, axis=1) == labels))

    return model.encoder, load_images(train, model.preprocess), load_images(test, model.preprocess)[rows], accuracy


def planted(name: str, num_tested: int) -> tuple[Encoder, np.ndarray, np.ndarray, None]:
    """A planted encoder and its pictures."""
    found = plant(PLANTED[name], num_images=384 + num_tested)
    images = np.asarray(found.images)
    return found.encoder, images[:384], images[384:], None


class Told(Observer):
    """Says on standard error how a draw gets on."""

    def moved(self, done: int, total: int, note: str = "") -> None:
        """A line."""
        print(f"{done}/{total} {note}", file=sys.stderr)


def chosen_by_auto(entries: list[Entry]) -> list[Entry]:
    """For each number of bits the entry with the least error on the pictures of the choice, under the name `auto` (its own as note)."""
    found = []
    for bits in dict.fromkeys(entry.cell.bits for entry in entries):
        ran = [entry for entry in entries if entry.cell.bits == bits and entry.fault is None]
        best = min(ran, key=lambda entry: (entry.metrics["choice"], entry.cost))
        found.append(Entry(Cell(bits, "auto"), metrics=best.metrics, note=best.name))
    return found


def cell(numbers: list[float] | None, percent: bool) -> str:
    """Mean and standard deviation over draws."""
    style = ".1f" if percent else ".2g"
    if not numbers:
        return "-"
    mean, spread = np.mean(numbers), np.std(numbers)
    return f"{mean:{style}}±{spread if spread > 1e-9 * mean else 0:{style}}"  # equal numbers have a spread of rounding


def summary(draws: list[list[Entry]], metric: str, percent: bool) -> str:
    """One row a recipe, a column a number of bits, `without / with registers`; `auto` chooses among both."""
    values: dict[tuple[str, str, bool], list[float]] = {}
    rows = [entry for entries in draws for entry in [*entries, *chosen_by_auto(entries)]]
    for entry in rows:
        if entry.fault is None:
            number = entry.metrics[metric] * (100 if percent else 1)
            values.setdefault((entry.cell.recipe, entry.cell.bits, entry.cell.plan is not None), []).append(number)
    all_bits = list(dict.fromkeys(entry.cell.bits for entry in draws[0]))
    with_registers = {entry.cell.bits for entry in draws[0] if entry.cell.plan is not None}
    lines = ["| recipe | " + " | ".join(all_bits) + " |", "|---|" + "---:|" * len(all_bits)]
    for recipe in dict.fromkeys(entry.cell.recipe for entry in rows):
        texts = []
        for bits in all_bits:
            sides = (False, True) if bits in with_registers and recipe != "auto" else (False,)
            texts.append(" / ".join(cell(values.get((recipe, bits, side)), percent) for side in sides))
        lines.append(f"| {recipe} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def measure(name: str, options: argparse.Namespace) -> None:
    """One encoder's table, written again after every draw."""
    size, out = options.calibration, options.out / name
    encoder, images, tested, accuracy = bundled(options.tested) if name == "emoji" else planted(name, 64)
    choice, rest = images[:CHOICE], images[CHOICE:]
    plans: dict[str, RegisterPlan] = find_plans(encoder, rest[: max(size, 128)], options.bits, Workdir(out, Told()))
    scored = np.concatenate([choice, tested])
    reference = features_of(encoder, scored)
    rest, draws = rest[max(size, 128) :], []

    def evaluate(features: np.ndarray) -> dict[str, float]:
        own = {
            "choice": label_free_error(features[:CHOICE], reference[:CHOICE]),
            "error": label_free_error(features[CHOICE:], reference[CHOICE:]),
        }
        return own if accuracy is None else {**own, "acc1": accuracy(features[CHOICE:])}

    for draw in range(options.draws):
        chosen = np.sort(np.random.default_rng(draw).choice(len(rest), size, replace=False))
        bench = Bench(encoder, rest[chosen], scored, plans, Judge(f"{name}, choice apart", evaluate))
        cells = cells_of(options.recipes, options.bits, plans)
        entries = compare(bench, cells, Workdir(out / f"draw-{draw}", Told()))
        draws.append(entries)
        write_tables(entries, out / f"draw-{draw}", encoder, dataset=name, float_metrics=evaluate(reference))
        taken = collections.Counter(entry.note for entries in draws for entry in chosen_by_auto(entries))
        tables = [summary(draws, "error", percent=False)]
        if accuracy is not None:
            tables.insert(0, summary(draws, "acc1", percent=True))
        heading = f"{name}: {draw + 1} draws; float {json.dumps(evaluate(reference))}; auto took {dict(taken)}"
        text = f"{heading}\n\n" + "\n".join(tables)
        (out / "summary.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", type=lambda text: text.split(","), default=["emoji"])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--calibration", type=int, default=64, help="pictures a draw, and of the search")
    parser.add_argument("--tested", type=int, default=136, help="pictures; planted encoders take 64")
    parser.add_argument("--bits", type=lambda text: text.split(","), default=["w8a8", "w6a6", "w4a4"])
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=list(QUICK))
    options = parser.parse_args()
    for name in options.encoder:
        measure(name, options)


if __name__ == "__main__":
    main()
