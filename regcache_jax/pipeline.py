"""The pipeline: one config, one work folder, stages that are skipped when nothing they depend on has changed.

convert -> inspect -> search (a scheme each) -> quantise -> evaluate (a row each) -> figures -> report. Killed at any time and
started again, it goes on where it stopped and ends with the same rows (`workdir` says how).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from regcache_jax import checkpoints
from regcache_jax.data import Dataset, batches, load_images, open_dataset
from regcache_jax.data.prompts import class_names
from regcache_jax.data.prompts import templates as prompt_templates
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.errors import UserError
from regcache_jax.evaluation import loop, results
from regcache_jax.evaluation.knn import knn_scores
from regcache_jax.evaluation.measure import Labelled, Measured, describe, encode_all, measure
from regcache_jax.evaluation.zero_shot import class_scores, class_vectors
from regcache_jax.observer import Observer
from regcache_jax.quantization.quantize import quantize
from regcache_jax.quantization.scheme import SITES, Activations, Scheme
from regcache_jax.registers.inspect import inspect
from regcache_jax.registers.plan import RegisterPlan
from regcache_jax.registers.plan_file import encoder_hash, load_plan, save_plan
from regcache_jax.registers.search import SearchResult, describe_plan, search
from regcache_jax.registers.sensitivity import sensitivity
from regcache_jax.registers.space import SearchConfig
from regcache_jax.registers.verdict import judge
from regcache_jax.report.sinks import sink_maps
from regcache_jax.workdir import Json, Stage, Workdir, listing, read_array, write_array

ACCURACY_TOLERANCE = 0.003
"""How far the float accuracy may lie from the published one before quantised numbers are called invalid."""

TASKS = ("zeroshot_classification", "knn")


class Kind(NamedTuple):
    """What a row of the table does beyond its scheme's bits: who shares an activation's scale, and which part of the plan it
    has in place (`registers` is all of it)."""

    activations: Activations = "static"
    plan: str | None = None


KINDS = {
    "plain": Kind(),
    "registers": Kind(plan="registers"),
    "prefix-only": Kind(plan="prefix-only"),
    "delete-only": Kind(plan="delete-only"),
    "group": Kind("group"),
    "group+registers": Kind("group", "registers"),
    "tensor": Kind("tensor"),
    "token": Kind("token"),
}
"""The rows that a config may ask for under every scheme."""

PLANS = ("registers", "prefix-only", "delete-only")
FEATURES, PREDICTIONS = "features/float.npy", "features/float_predictions.npy"


class TableRow(NamedTuple):
    """One row of the table: `float` or a quantised scheme, and a key of KINDS."""

    scheme: str
    kind: str

    @property
    def stage(self) -> str:
        """Its stage's name."""
        return f"evaluate_{self.scheme}_{self.kind}"


class Experiment:
    """A config being run: what has been loaded so far, each thing once."""

    def __init__(self, config: ConfigDict, workdir: epath.PathLike, observer: Observer | None = None) -> None:
        check_config(config)
        self.config, self.observer = config, observer or Observer()
        self.workdir = Workdir(workdir, self.observer)
        self.model = self._load_model()
        self.encoder = self.model.encoder
        self.identity = encoder_hash(self.encoder)
        self.dataset = functools.cache(self._open_dataset)
        self.images = functools.cache(self._load_images)
        self.data_identity = functools.cache(self._identify_data)
        self.search = functools.cache(self._search)
        self.quantize = functools.cache(self._quantize)
        self.reference = functools.cache(self._read_reference)
        self.class_vectors = functools.cache(self._make_class_vectors)

    def _load_model(self) -> checkpoints.Model:
        """The config's model: bundled, a model folder, or a checkpoint that is converted into the work folder once."""
        source = self.config.model
        if source == "bundled":
            from regcache_jax.demo.bundled import bundled_model

            return checkpoints.load(bundled_model())
        if (epath.Path(source) / checkpoints.ENCODER_FILE).exists():
            return checkpoints.load(source)

        def make() -> Json:
            from regcache_jax import converters

            converters.convert(source, self.workdir.path / "model")
            return {"source": source}

        self.workdir.stage("convert", [source, listing(source)], make, files=["model"])
        return checkpoints.load(self.workdir.path / "model")

    def _open_dataset(self, which: str) -> Dataset:
        """The config's `reference`, `calibration`, `evaluation` or `bank` data."""
        given = self.config[which]
        return open_dataset(given.dataset, given.data_dir or None, given.split or None, given.limit or None)

    def _load_images(self, which: str) -> np.ndarray:
        """Its preprocessed pictures, read once."""
        return load_images(self.dataset(which), self.model.preprocess)

    def _identify_data(self, which: str) -> Json:
        """What a stage that reads some data depends on."""
        given, examples = self.config[which], len(self.dataset(which))
        files = listing(epath.Path(given.data_dir) / given.split) if given.dataset == "folder" else []
        return {**given.to_dict(), "examples": examples, "files": files}

    def inspect(self) -> Stage:
        """Profile, sensitivity and verdict of the float encoder, without registers."""

        def make() -> Json:
            profile = inspect(self.encoder, self.images("reference"), batch_size=self.config.search.chunk)
            errors = sensitivity(self.encoder, self.images("reference")[:64], Scheme())
            verdict = judge(profile, errors)
            return {
                "profile": profile.to_json(),
                "sensitivity": {"sites": list(SITES), "errors": errors.tolist()},
                "verdict": verdict.to_json(),
            }

        return self.workdir.stage("inspect", [self.identity, self.data_identity("reference")], make)

    def _search(self, name: str) -> Stage:
        """The plan for one scheme and its halves; saved as `plans/NAME-*.safetensors`, the trial table beside them."""
        given = self.config.search
        config = SearchConfig(
            chunk=given.chunk,
            align=given.align or None,
            max_trials=given.max_trials or None,
            max_minutes=given.max_minutes or None,
        )
        data = self.data_identity("reference")
        made_from = [self.identity, data, name, self.config.weights, dataclasses.asdict(config)]
        digest = self.workdir.digest(f"search_{name}", made_from)

        def make() -> Json:
            def tell(done: int, planned: int, best: float) -> None:
                self.observer.moved(done, planned, f"best error {best:.3g}")

            scheme = self.scheme(name)
            assert scheme is not None
            table = self.workdir.path / "plans" / f"{name}-{digest}.jsonl"
            result = search(self.encoder, self.images("reference"), scheme, config, table=table, progress=tell)
            reference = {key: data[key] for key in ("dataset", "split", "examples")}
            metadata = describe_plan(result, self.encoder, scheme, config, reference)
            for kind, plan in alternatives(result).items():
                save_plan(self.workdir.path / plan_file(name, kind), plan, {**metadata, "kind": kind})
            return {**result.to_json(), "trials": result.trials}

        return self.workdir.stage(f"search_{name}", made_from, make, [plan_file(name, kind) for kind in PLANS])

    def plan(self, name: str, kind: str) -> RegisterPlan:
        """A plan that `search` has saved."""
        self.search(name)
        return load_plan(self.workdir.path / plan_file(name, kind))[0]

    def scheme(self, name: str, activations: Activations = "static") -> Scheme | None:
        """A scheme by name, with the config's weights."""
        return Scheme.named(name, activations=activations, weights=self.config.weights)

    def quantized(self, row: TableRow) -> Encoder:
        """The encoder of one row."""
        kind = KINDS[row.kind]
        encoder = self.encoder
        if kind.plan is not None:
            encoder = encoder.with_plan(self.plan(self.plan_of(row), kind.plan))
        scheme = self.scheme(row.scheme, kind.activations)
        if scheme is None:
            return encoder
        return quantize(encoder, self.images("calibration") if scheme.calibrated else None, scheme)

    def plan_of(self, row: TableRow) -> str:
        """The scheme whose plan a row has in place; the float row has the first scheme's."""
        return self.config.schemes[0] if row.scheme == "float" else row.scheme

    def _quantize(self, name: str) -> Stage:
        """The integer encoder with its full plan as a model folder, `models/NAME`: what a user takes away."""
        folder = f"models/{name}"

        def make() -> Json:
            encoder = self.quantized(TableRow(name, "registers"))
            given = self.data_identity("calibration")
            metadata = {
                "source": str(self.config.model),
                "calibration": {key: given[key] for key in ("dataset", "split", "examples")},
                "registers": plan_file(name, "registers"),
            }
            tokenizers = [self.model.folder / file for file in checkpoints.tokenizer_files(self.model.folder)]
            checkpoints.save(self.workdir.path / folder, encoder, metadata=metadata, tokenizer_files=tokenizers)
            return {"folder": folder}

        made_from = [self.search(name).made_from, self.data_identity("calibration")]
        return self.workdir.stage(f"quantize_{name}", made_from, make, [folder])

    def rows(self) -> Iterator[TableRow]:
        """Every row of the table."""
        yield TableRow("float", "plain")
        yield TableRow("float", "registers")
        for scheme in self.config.schemes:
            for kind in self.config.rows:
                yield TableRow(scheme, kind)

    def evaluate(self) -> list[results.Row]:
        """One result for each row of the table, each a stage of its own."""
        rows: list[results.Row] = []
        for row in self.rows():
            result = self._evaluate(row)
            reference = rows[0]["metrics"] if rows else None
            rows.append(
                results.row(
                    dataset=self.dataset("evaluation").name,
                    model=self.encoder.spec.name,
                    pretrained=str(self.config.model),
                    task=self.config.task,
                    metrics=result["metrics"],
                    quantization={**result["quantization"], "float_reference": reference},
                )
            )
        return rows

    def _evaluate(self, row: TableRow) -> Json:
        """One row's metrics and description."""
        config, is_reference = self.config, row == TableRow("float", "plain")
        made_from: list[Any] = [
            self.identity, self.data_identity("evaluation"), row, config.task, config.weights, config.classnames,
            config.templates,
        ]  # fmt: skip
        if config.task == "knn":
            made_from += [config.neighbours, config.temperature, self.data_identity("bank")]
        if KINDS[row.kind].plan is not None:
            made_from.append(self.search(self.plan_of(row)).made_from)
        if row.scheme != "float":
            made_from.append(self.data_identity("calibration"))
        if row.scheme != "float" and row.kind == "registers":
            made_from.append(self.quantize(row.scheme).made_from)

        def make() -> Json:
            if row.scheme != "float" and row.kind == "registers":
                encoder = checkpoints.load(self.workdir.path / "models" / row.scheme).encoder
            else:
                encoder = self.quantized(row)
            found = self._measure(encoder, None if is_reference else self.reference())
            if is_reference:
                write_array(self.workdir.path / FEATURES, found.features)
                write_array(self.workdir.path / PREDICTIONS, found.predictions)
            return {"metrics": found.metrics, "quantization": self._description(row, encoder, len(found.features))}

        files = [FEATURES, PREDICTIONS] if is_reference else []
        return self.workdir.stage(row.stage, made_from, make, files).result

    def _read_reference(self) -> Measured:
        """The float encoder's features and predictions, which its row has left."""
        return Measured(
            {}, read_array(self.workdir.path / FEATURES), read_array(self.workdir.path / PREDICTIONS).astype(np.int32)
        )

    def _measure(self, encoder: Encoder, reference: Measured | None) -> Measured:
        if self.config.task == "zeroshot_classification":
            scores = functools.partial(class_scores, vectors=self.class_vectors())
            return measure(self._encode(encoder, "evaluation"), scores, reference)
        bank, found = self._encode(encoder, "bank"), self._encode(encoder, "evaluation")
        num_classes = 1 + max(int(bank.labels.max()), int(found.labels.max()))
        votes = functools.partial(
            knn_scores, bank=bank.features, labels=bank.labels, num_classes=num_classes,
            neighbours=self.config.neighbours, temperature=self.config.temperature,
        )  # fmt: skip
        return measure(found, votes, reference)

    def _make_class_vectors(self) -> np.ndarray:
        """Class vectors of the evaluation's classes."""
        data = self.dataset("evaluation")
        names = class_names(data, self.config.classnames or None)
        prompts = prompt_templates(data, self.config.templates or None)
        return class_vectors(self.encoder, self.model.tokenize, names, prompts)

    def _encode(self, encoder: Encoder, which: str) -> Labelled:
        data, done = self.dataset(which), 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            self.observer.moved(done, len(data), which)

        size = loop.round_up(self.config.batch_size)
        return encode_all(
            encoder, batches(data, self.model.preprocess, size),
            parallel=self.config.parallel, micro_batch=self.config.micro_batch or None, progress=tell,
        )  # fmt: skip

    def _description(self, row: TableRow, encoder: Encoder, examples: int) -> Json:
        """The `quantization` part of a row. Only the full plan counts as registers; its halves are methods of their own."""
        plan, quantized = KINDS[row.kind].plan, row.scheme != "float"
        halves = ("prefix-only", "delete-only")
        found = self.search(self.plan_of(row)).result if plan is not None else None
        return describe(
            encoder,
            examples,
            method=plan if plan in halves else "rtn" if quantized else None,
            registers=plan == "registers",
            plan="full" if plan == "registers" else plan,
            row=row.kind,
            numbers=None if encoder.schedule is None else dataclasses.asdict(encoder.schedule),
            note=None if found is None else note(plan, found, encoder.schedule.delete_count if encoder.schedule else 0),
        )

    def figures(self) -> Stage:
        """What the report draws: norms with the registers in place, and sink maps of a few pictures."""
        scheme = self.config.schemes[0]

        def make() -> Json:
            encoder = self.encoder.with_plan(self.plan(scheme, "registers"))
            profile = inspect(encoder, self.images("reference"), batch_size=self.config.search.chunk)
            return {
                "scheme": scheme,
                "profile": profile.to_json(),
                "maps": sink_maps(self.encoder, encoder, self.dataset("evaluation"), self.model),
            }

        return self.workdir.stage("figures", [self.search(scheme).made_from, self.data_identity("evaluation")], make)


def note(plan: str | None, found: Json, deleted: int) -> str | None:
    """What a reader must know of a row whose plan is not what its name promises. `deleted`: tokens that its encoder deletes."""
    numbers = found["numbers"]
    if plan == "delete-only" and deleted == 0:
        return "the full plan deletes nothing, and the search tried no deletion alone: the same as plain"
    if plan == "delete-only":
        deletes = numbers["delete_count"] > 0
        return None if deletes else "the full plan deletes nothing: the best deletion that the search tried alone"
    if not found["helps"]:
        return "the search found no plan that helps: the same as plain"
    if plan == "prefix-only" and numbers["delete_count"] == 0:
        return "the full plan deletes nothing: prefix only is the same plan"
    return None


def plan_file(name: str, kind: str) -> str:
    """Where the plan of a scheme lies in the work folder; `kind` is one of PLANS."""
    return f"plans/{name}-{kind}.safetensors"


def alternatives(result: SearchResult) -> dict[str, RegisterPlan]:
    """The plan of a search and its two halves. Where the full plan deletes nothing, delete-only is the best deletion that the
    search has tried alone."""
    plans = dict(zip(PLANS, (result.plan, result.plan.prefix_only(), result.plan.delete_only()), strict=True))
    alone = [
        row for row in result.trials
        if row["numbers"]["start"] == row["numbers"]["stop"] and row["numbers"]["delete_count"] > 0
    ]  # fmt: skip
    if alone and result.numbers.delete_count == 0:
        numbers = min(alone, key=lambda row: (-row["chunks"], row["error"]))["numbers"]
        chosen = {name: jnp.int32(numbers[name]) for name in ("start", "stop", "delete_block", "delete_count")}
        plans["delete-only"] = result.plan.replace(**chosen)
    return plans


def check_config(config: ConfigDict) -> None:
    """Raises UserError that names everything in a config that cannot be run."""
    faults = []
    schemes = tuple(config.schemes)
    if not schemes:
        faults.append("it names no scheme; give config.schemes, such as ('w8a8',)")
    for name in schemes:
        if Scheme.named(name) is None:
            faults.append("scheme float is always in the table; config.schemes are the quantised ones")
    if unknown := [kind for kind in config.rows if kind not in KINDS]:
        faults.append(f"rows {', '.join(unknown)} are unknown; rows are {', '.join(KINDS)}")
    if config.task not in TASKS:
        faults.append(f"task {config.task!r} is unknown; tasks are {', '.join(TASKS)}")
    if config.parallel not in ("jit", "pmap"):
        faults.append(f"parallel must be jit or pmap, got {config.parallel!r}")
    if faults:
        raise UserError(f"the config cannot be run: {'; '.join(faults)}")


def run(config: ConfigDict, workdir: epath.PathLike, observer: Observer | None = None) -> list[results.Row]:
    """Runs a config; writes results.json, story.json and report.html, and a model folder for each scheme.

    Returns the rows. Raises UserError for what the user can put right."""
    from regcache_jax.report.page import write_page

    observer = observer or Observer()
    experiment = Experiment(config, workdir, observer)
    inspected = experiment.inspect().result
    for finding in inspected["verdict"]["findings"]:
        observer.said(finding["sentence"])
    searched = {}
    for name in config.schemes:
        searched[name] = experiment.search(name).result
        observer.said(f"{name}: {searched[name]['sentence']}")
    for name in config.schemes:
        experiment.quantize(name)
    rows = experiment.evaluate()
    check_float_accuracy(rows, config, observer)
    folder = epath.Path(workdir)
    story = {
        "inspect": inspected,
        "search": searched,
        "figures": experiment.figures().result,
        "config": json.loads(config.to_json_best_effort()),
    }
    results.write(folder / "story.json", story)
    results.write(folder / "results.json", rows)
    write_page(folder / "report.html", rows, story)
    return rows


def check_float_accuracy(rows: list[results.Row], config: ConfigDict, observer: Observer) -> None:
    """Marks quantised rows invalid where the float accuracy is not the expected one (a full evaluation only)."""
    if not config.expected_acc1 or config.evaluation.limit or (config.task == "knn" and config.bank.limit):
        return
    found = rows[0]["metrics"]["acc1"]
    valid = abs(found - config.expected_acc1) <= ACCURACY_TOLERANCE
    for row in rows:
        row["quantization"]["valid"] = valid
    if not valid:
        observer.said(
            f"the float encoder gives {found:.1%}, expected {config.expected_acc1:.1%}: preprocessing, prompts or data differ, "
            "and the quantised rows are not valid"
        )
