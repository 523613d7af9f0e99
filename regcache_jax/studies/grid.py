"""The grid recipes x bits x {no registers, registers}: label-free error, accuracy and cost of each, resumable.

Every entry is one JSON file under `entries/`, written when it is done; a comparison that is killed goes on with those that are
missing. An entry that cannot be (rotation with a plan that deletes) says why instead of a number.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.encoders.encoder import Encoder, encode_image
from regcache_jax.files import results
from regcache_jax.files.bounded import read_json
from regcache_jax.files.identity import Digest
from regcache_jax.files.lock import held
from regcache_jax.files.paths import sweep, write_json, write_whole
from regcache_jax.files.sealed import is_sealed, seal
from regcache_jax.quantization.quantize import in_batches, quantize
from regcache_jax.registers.search.trial import feature_errors
from regcache_jax.studies.cost import cost
from regcache_jax.studies.recipes import scheme_of

Images = Float[np.ndarray, "_ Y X 3"]
Evaluate = Callable[[Float[np.ndarray, "_ E"]], Mapping[str, float]]
"""Metrics of the scored images' features, as fractions (acc1 and so on)."""

COST_UNIT = "int8 multiply-adds an image"
"""Of the model of `cost`."""

_encode = jax.jit(encode_image)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One cell of the grid and what came of it; `fault` says why there are no numbers, `note` why one is missing."""

    recipe: str
    bits: str
    registers: bool
    error: float | None = None
    cost: float | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    fault: str | None = None
    note: str | None = None

    @property
    def name(self) -> str:
        """`w8a8-smoothquant-registers` and the like."""
        return f"{self.bits}-{self.recipe}" + ("-registers" if self.registers else "")


def features_of(encoder: Encoder, images: Images, batch_size: int = 64) -> Float[np.ndarray, "n E"]:
    """Features of an array of images, in batches of one shape."""
    encoder = encoder.replace(scheme=None if encoder.scheme is None else encoder.scheme.running)
    batches = [np.asarray(_encode(encoder, jnp.asarray(batch))) for batch in in_batches(images, batch_size)]
    return np.concatenate(batches)[: len(images)]


def label_free_error(features: Float[np.ndarray, "n E"], reference: Float[np.ndarray, "n E"]) -> float:
    """Mean squared distance between features and float ones, over the float ones' squared length, to six digits (below them
    is the order of additions)."""
    return float(f"{np.mean(feature_errors(features, reference)):.6g}")


def quantize_entry(encoder: Encoder, entry: Entry, images: Images, plan: RegisterPlan | None) -> Encoder:
    """The encoder that an entry speaks of."""
    return quantize(encoder.with_plan(plan if entry.registers else None), images, scheme_of(entry.recipe, entry.bits))


def compare(
    encoder: Encoder,
    calibration: Images,
    scoring: Images,
    out: epath.PathLike,
    *,
    recipes: Sequence[str],
    bits: Sequence[str],
    plans: Mapping[str, RegisterPlan],
    evaluate: Evaluate | None = None,
    cost_of: Callable[[Encoder], float] = cost,
    cost_unit: str = COST_UNIT,
    progress: Callable[[int, int, Entry], None] | None = None,
) -> list[Entry]:
    """Tries every recipe at every number of bits, without registers and (where `plans` has one for the bits) with them.

    `calibration` gives the scales, `scoring` (other images) the label-free error and, by `evaluate`, any metrics, `cost_of` the cost, in
    `cost_unit` (the model of `cost` unless a compiler is asked, as `regcache_jax.tpu.ask.encoder_cycles` does). Raises UserError for an
    `out` that holds another comparison's entries."""
    wanted = [
        Entry(recipe, each, registers)
        for each in bits
        for recipe in recipes
        for registers in ((False, True) if each in plans else (False,))
    ]
    for entry in wanted:
        scheme_of(entry.recipe, entry.bits)
    fingerprint = _fingerprint(encoder, calibration, scoring, cost_unit)
    reference: np.ndarray | None = None
    entries = []
    folder = epath.Path(out) / "entries"
    folder.mkdir(parents=True, exist_ok=True)
    with held(out, folder=True):
        sweep(epath.Path(out))
        for number, entry in enumerate(wanted):
            path, plan = folder / f"{entry.name}.json", plans[entry.bits] if entry.registers else None
            own = fingerprint if plan is None else _with_plan(fingerprint, plan)
            known = _stored(path, own)
            if known is None:
                if reference is None:
                    reference = features_of(encoder.with_plan(None), scoring)
                known = _try(encoder, entry, calibration, scoring, reference, plan, evaluate, cost_of)
                write_json(path, seal({**dataclasses.asdict(known), "comparison": own}))
            entries.append(known)
            if progress is not None:
                progress(number + 1, len(wanted), known)
    return entries


def _stored(path: epath.Path, comparison: str) -> Entry | None:
    """An entry of a comparison as it was written; None where there is none that is whole. Raises UserError for one of another."""
    if not path.exists():
        return None
    try:
        stored = read_json(path, dict[str, Any])
    except UserError:
        return None
    if not is_sealed(stored):
        return None
    if stored["comparison"] != comparison:
        raise UserError(
            f"{path} belongs to another comparison (encoder, images, plans or costs differ); choose another folder"
        )
    return Entry(**{field.name: stored[field.name] for field in dataclasses.fields(Entry)})


def _try(
    encoder: Encoder,
    entry: Entry,
    calibration: Images,
    scoring: Images,
    reference: Float[np.ndarray, "n E"],
    plan: RegisterPlan | None,
    evaluate: Evaluate | None,
    cost_of: Callable[[Encoder], float],
) -> Entry:
    began = time.monotonic()
    try:
        quantized = quantize_entry(encoder, entry, calibration, plan)
    except UserError as fault:
        return dataclasses.replace(entry, fault=str(fault))
    features = features_of(quantized, scoring)
    error = label_free_error(features, reference)
    metrics = {name: float(value) for name, value in evaluate(features).items()} if evaluate else {}
    seconds = round(time.monotonic() - began, 1)
    entry = dataclasses.replace(entry, error=error, metrics=metrics, seconds=seconds)
    try:
        return dataclasses.replace(entry, cost=cost_of(quantized))
    except UserError as fault:
        return dataclasses.replace(entry, note=f"cost unknown: {fault}")


def _fingerprint(encoder: Encoder, calibration: Images, scoring: Images, cost_unit: str) -> str:
    """Changes with anything that the numbers of entries without registers depend on, but for `evaluate` and `cost_of`."""
    arrays = [*jax.tree.leaves(encoder.params), calibration, scoring]
    return Digest().json([encoder.spec.to_json(), cost_unit]).arrays(arrays).hex()[:16]


def _with_plan(fingerprint: str, plan: RegisterPlan) -> str:
    """The same for an entry with registers."""
    return Digest().text(fingerprint).arrays(jax.tree.leaves(plan)).hex()[:16]


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
    cost_unit: str = COST_UNIT,
) -> list[epath.Path]:
    """Writes `compare.json` (CLIP_benchmark's keys), `compare.csv`, `compare.md` and, where matplotlib is, `compare.png`.

    Returns what was written."""
    out = epath.Path(out)
    rows = [_row(entry, encoder, dataset, float_metrics, cost_unit) for entry in entries]
    results.write(out / "compare.json", rows)
    names = sorted({name for entry in entries for name in entry.metrics})
    header = ["bits", "recipe", "registers", "error", "cost", *names, "fault"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for entry in entries:
        numbers = [entry.metrics.get(name) for name in names]
        writer.writerow(
            [entry.bits, entry.recipe, entry.registers, entry.error, entry.cost, *numbers, entry.fault or entry.note]
        )
    write_whole(out / "compare.csv", buffer.getvalue().encode())
    write_whole(out / "compare.md", markdown(entries).encode())
    written = [out / "compare.json", out / "compare.csv", out / "compare.md"]
    if importlib.util.find_spec("matplotlib") is not None:
        write_whole(out / "compare.png", _plot(entries, cost_unit))
        written.append(out / "compare.png")
    return written


def _row(
    entry: Entry, encoder: Encoder, dataset: str, float_metrics: Mapping[str, float], cost_unit: str
) -> results.Row:
    scheme = scheme_of(entry.recipe, entry.bits)
    return results.row(
        dataset=dataset,
        model=encoder.spec.name,
        pretrained=f"{entry.recipe}{'+registers' if entry.registers else ''}",
        task="zeroshot_classification",
        metrics=entry.metrics,
        quantization={
            "scheme": scheme.name,
            "activations": scheme.activations,
            "weights": scheme.weights,
            "method": scheme.method,
            "registers": entry.registers,
            "recipe": entry.recipe,
            "options": scheme.to_json(),
            "label_free_error": entry.error,
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
    columns = list(dict.fromkeys((entry.bits, entry.registers) for entry in entries))
    cells = {(entry.recipe, entry.bits, entry.registers): entry for entry in entries}
    head = ["recipe", *(f"{bits}{' + registers' if registers else ''}" for bits, registers in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(columns)]
    by_metric = all(metric in entry.metrics for entry in entries if entry.fault is None)

    def value(entry: Entry | None) -> float | None:
        if entry is None or entry.fault is not None:
            return None
        return entry.metrics[metric] if by_metric else entry.error

    best = {}
    for column in columns:
        found = [v for e in entries if (e.bits, e.registers) == column and (v := value(e)) is not None]
        best[column] = (max(found) if by_metric else min(found)) if found else None
    for recipe in dict.fromkeys(entry.recipe for entry in entries):
        texts = []
        for column in columns:
            number = value(cells.get((recipe, *column)))
            text = "-" if number is None else f"{100 * number:.1f}" if by_metric else f"{number:.3g}"
            texts.append(f"**{text}**" if number is not None and number == best[column] else text)
        lines.append("| " + " | ".join([recipe, *texts]) + " |")
    return "\n".join(lines) + "\n"


def _plot(entries: Sequence[Entry], cost_unit: str) -> bytes:
    """Error over cost, a panel a number of bits, the Pareto front as a line."""
    from matplotlib.figure import Figure

    all_bits = list(dict.fromkeys(entry.bits for entry in entries))
    figure = Figure(figsize=(5 * len(all_bits), 4.5), layout="constrained")
    for column, bits in enumerate(all_bits):
        axes = figure.add_subplot(1, len(all_bits), column + 1)
        shown = [e for e in entries if e.bits == bits and e.error is not None and e.cost is not None]
        for registers, marker in ((False, "o"), (True, "^")):
            points = _points([entry for entry in shown if entry.registers == registers])
            axes.scatter(*points, marker=marker, label="registers" if registers else "no registers")
        front = pareto(shown)
        axes.plot(*_points(front), linewidth=1, color="0.5", label="Pareto front")
        for entry, x, y in zip(front, *_points(front), strict=True):
            axes.annotate(entry.recipe, (x, y), (4, 4), textcoords="offset points", fontsize=8)
        axes.set(title=bits, xlabel=f"cost ({cost_unit})", ylabel="label-free error", yscale="log")
        axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _points(entries: Sequence[Entry]) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Cost and error of entries that have both."""
    return np.array([entry.cost for entry in entries], float), np.array([entry.error for entry in entries], float)
