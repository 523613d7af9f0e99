"""What a comparison leaves for its readers: rows in CLIP_benchmark's keys, CSV, Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files import results
from regcache_jax.files.paths import write_whole
from regcache_jax.files.places import as_path
from regcache_jax.studies.cells import Entry
from regcache_jax.studies.cost import MODEL


def pareto(entries: Sequence[Entry]) -> list[Entry]:
    """Entries that no other one beats in both error and cost, the cheapest first."""
    front: list[Entry] = []
    least = np.inf
    for entry in sorted(
        (e for e in entries if e.error is not None and e.cost is not None), key=lambda e: (e.cost, e.error)
    ):
        if entry.error is not None and entry.error < least:
            front.append(entry)
            least = entry.error
    return front


def write_tables(
    entries: Sequence[Entry],
    out: epath.PathLike,
    encoder: Encoder,
    *,
    dataset: str,
    float_metrics: Mapping[str, float],
    cost_unit: str = MODEL.unit,
) -> list[epath.Path]:
    """Writes `compare.json` (CLIP_benchmark's keys), `compare.csv` and `compare.md`. Returns what was written."""
    out = as_path(out)
    rows = [_row(entry, encoder, dataset, float_metrics, cost_unit) for entry in entries]
    results.write(out / "compare.json", rows)
    names = sorted({name for entry in entries for name in entry.metrics})
    header = ["bits", "recipe", "registers", "error", "jitter", "worst", "cost", *names, "fault"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for entry in entries:
        numbers = [entry.metrics.get(name) for name in names]
        writer.writerow(
            [
                entry.cell.bits,
                entry.cell.recipe,
                entry.cell.plan is not None,
                entry.error,
                entry.jitter,
                entry.worst,
                entry.cost,
                *numbers,
                entry.fault or entry.note,
            ]
        )
    write_whole(out / "compare.csv", buffer.getvalue().encode())
    write_whole(out / "compare.md", markdown(entries).encode())
    return [out / "compare.json", out / "compare.csv", out / "compare.md"]


def _row(
    entry: Entry, encoder: Encoder, dataset: str, float_metrics: Mapping[str, float], cost_unit: str
) -> results.Row:
    cell, scheme = entry.cell, entry.cell.scheme()
    assert scheme is not None
    return results.row(
        dataset=dataset,
        model=encoder.spec.name,
        pretrained=cell.recipe if cell.plan is None else f"{cell.recipe}+{cell.plan}",
        task="zeroshot_classification",
        metrics=entry.metrics,
        quantization={
            "scheme": scheme.name,
            "activations": scheme.activations,
            "weights": scheme.weights,
            "method": scheme.method,
            "registers": cell.plan is not None,
            "recipe": cell.recipe,
            "options": scheme.to_json(),
            "label_free_error": entry.error,
            "label_free_error_jitter": entry.jitter,
            "label_free_error_worst": entry.worst,
            "cost": entry.cost,
            "cost_unit": cost_unit,
            "seconds": entry.seconds,
            "fault": entry.fault or entry.note,
            "float_reference": dict(float_metrics),
        },
    )


def markdown(entries: Sequence[Entry], metric: str = "acc1") -> str:
    """A table with one row a recipe: accuracy in percent (label-free error where there is none), without and with registers.

    The best of each column is bold."""
    columns = list(dict.fromkeys((entry.cell.bits, entry.cell.plan) for entry in entries))
    cells = {(entry.cell.recipe, entry.cell.bits, entry.cell.plan): entry for entry in entries}
    head = ["recipe", *(bits if plan is None else f"{bits} + {plan}" for bits, plan in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(columns)]
    by_metric = all(metric in entry.metrics for entry in entries if entry.fault is None)

    def value(entry: Entry | None) -> float | None:
        if entry is None or entry.fault is not None:
            return None
        return entry.metrics[metric] if by_metric else entry.error

    best = {}
    for column in columns:
        found = [v for e in entries if (e.cell.bits, e.cell.plan) == column and (v := value(e)) is not None]
        best[column] = (max(found) if by_metric else min(found)) if found else None
    for recipe in dict.fromkeys(entry.cell.recipe for entry in entries):
        texts = []
        for column in columns:
            number = value(cells.get((recipe, *column)))
            text = "-" if number is None else f"{100 * number:.1f}" if by_metric else f"{number:.3g}"
            texts.append(f"**{text}**" if number is not None and number == best[column] else text)
        lines.append("| " + " | ".join([recipe, *texts]) + " |")
    return "\n".join(lines) + "\n"
