"""The pipeline: one config, one work folder, stages that are skipped when nothing they depend on has changed.

A stage is a function whose result is plain JSON, kept in `stages/NAME.json` beside a hash of what it was made from. Files that it
makes as well (model folder, plans, features) are named after that hash. Killed at any time and started again, the pipeline
goes on where it stopped: a stage's record is written last, and whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

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
from regcache_jax.evaluation.measure import Measured, measure
from regcache_jax.evaluation.zero_shot import class_vectors
from regcache_jax.observer import Observer
from regcache_jax.quantization.quantize import quantize
from regcache_jax.quantization.scheme import SITES, Scheme
from regcache_jax.registers.inspect import inspect
from regcache_jax.registers.plan import RegisterPlan
from regcache_jax.registers.plan_file import encoder_hash, load_plan, save_plan
from regcache_jax.registers.search import SearchResult, search
from regcache_jax.registers.sensitivity import sensitivity
from regcache_jax.registers.space import SearchConfig
from regcache_jax.registers.verdict import judge
from regcache_jax.report.sinks import sink_maps

Json = dict[str, Any]
ACCURACY_TOLERANCE = 0.003
"""How far the float accuracy may lie from the published one before quantised numbers are called invalid."""


@dataclasses.dataclass
class Workdir:
    """A work folder and its stage records."""

    path: epath.Path
    observer: Observer

    def stage(self, name: str, made_from: Any, make: Callable[[], Json]) -> Json:
        """The result of a stage: from its record if it was made from the same things, else made and recorded."""
        digest = fingerprint(made_from)
        record = self.path / "stages" / f"{name}.json"
        if record.exists():
            try:
                stored = json.loads(record.read_text())
            except ValueError:
                stored = {}
            if stored.get("made_from") == digest and "result" in stored:
                self.observer.skipped(name)
                return stored["result"]
        self.observer.started(name)
        result = make()
        results.write(record, {"made_from": digest, "result": result})
        return result


def fingerprint(tree: Any) -> str:
    """Short hash of a JSON tree."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


class Experiment:
    """A config being run: what has been loaded so far, each thing once."""

    def __init__(self, config: ConfigDict, workdir: epath.PathLike, observer: Observer | None = None) -> None:
        self.config, self.observer = config, observer or Observer()
        self.workdir = Workdir(epath.Path(workdir), self.observer)
        self.model = self._load_model()
        self.encoder = self.model.encoder
        self.identity = encoder_hash(self.encoder)
        self._images: dict[str, np.ndarray] = {}
        self._searched: dict[str, Json] = {}

    def _load_model(self) -> checkpoints.Model:
        """The config's model: bundled, a model folder, or a checkpoint that is converted into the work folder once."""
        source = self.config.model
        if source == "bundled":
            from regcache_jax.demo.bundled import bundled_model

            return checkpoints.load(bundled_model())
        folder = epath.Path(source)
        if not (folder / checkpoints.ENCODER_FILE).exists():
            from regcache_jax import converters

            folder = self.workdir.path / "model"
            if not folder.exists():
                self.observer.started("convert")
                converters.convert(source, folder)
        return checkpoints.load(folder)

    def dataset(self, which: str) -> Dataset:
        """The config's `reference`, `calibration` or `evaluation` data."""
        given = self.config[which]
        return open_dataset(given.dataset, given.data_dir or None, given.split or None, given.limit or None)

    def images(self, which: str) -> np.ndarray:
        """Its preprocessed pictures, read once."""
        if which not in self._images:
            self._images[which] = load_images(self.dataset(which), self.model.preprocess)
        return self._images[which]

    def data_identity(self, which: str) -> Json:
        """What a stage that reads some data depends on."""
        return {**self.config[which].to_dict(), "examples": len(self.dataset(which))}

    def inspect(self) -> Json:
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

    def search(self, name: str) -> Json:
        """The plan for one scheme; saved as `plans/NAME.safetensors`, the trial table beside it."""
        given = self.config.search
        config = SearchConfig(
            chunk=given.chunk,
            align=given.align or None,
            max_trials=given.max_trials or None,
            max_minutes=given.max_minutes or None,
        )
        made_from = [
            self.identity,
            self.data_identity("reference"),
            name,
            self.config.weights,
            dataclasses.asdict(config),
        ]
        table = self.workdir.path / "plans" / f"{name}-{fingerprint(made_from)}.jsonl"

        def make() -> Json:
            def tell(done: int, planned: int, best: float) -> None:
                self.observer.moved(done, planned, f"best error {best:.3g}")

            scheme = Scheme.named(name, weights=self.config.weights)
            assert scheme is not None
            result = search(self.encoder, self.images("reference"), scheme, config, table=table, progress=tell)
            metadata = {"encoder": self.encoder.spec.name, "encoder_hash": self.identity, **result.to_json()}
            for kind, plan in alternatives(result).items():
                self.plan_path(name, kind).unlink(missing_ok=True)
                save_plan(self.plan_path(name, kind), plan, {**metadata, "kind": kind})
            return {**result.to_json(), "trials": result.trials}

        if name not in self._searched:
            self._searched[name] = self.workdir.stage(f"search_{name}", made_from, make)
        return self._searched[name]

    def plan_path(self, name: str, kind: str) -> epath.Path:
        """Where the plan of a scheme lies; `kind` is registers, prefix-only or delete-only."""
        return self.workdir.path / "plans" / f"{name}-{kind}.safetensors"

    def plan(self, name: str, kind: str) -> RegisterPlan:
        """A plan that `search` has saved."""
        return load_plan(self.plan_path(name, kind))[0]

    def vectors(self) -> np.ndarray:
        """Class vectors of the evaluation's classes."""
        data = self.dataset("evaluation")
        names = class_names(data, self.config.classnames or None)
        prompts = prompt_templates(data, self.config.templates or None)
        return class_vectors(self.encoder, self.model.tokenize, names, prompts)

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Every row of the table: its name, its scheme, its kind."""
        yield "float", "float", "plain"
        yield "float + registers", "float", "registers"
        for scheme in self.config.schemes:
            for kind in self.config.rows:
                yield f"{scheme} {kind}", scheme, kind

    def quantized(self, scheme_name: str, kind: str) -> Encoder:
        """The encoder of one row."""
        plan_of = scheme_name if scheme_name != "float" else self.config.schemes[0]
        encoder = self.encoder
        if kind in ("registers", "prefix-only", "delete-only"):
            encoder = encoder.with_plan(self.plan(plan_of, kind))
        activations = "token" if kind == "token" else "static"
        scheme = Scheme.named(scheme_name, activations=activations, weights=self.config.weights)
        if scheme is None:
            return encoder
        return quantize(encoder, self.images("calibration") if scheme.calibrated else None, scheme)

    def evaluate(self) -> list[results.Row]:
        """One result row for each row of the table, each a stage of its own."""
        data = self.dataset("evaluation")
        rows: list[results.Row] = []
        vectors: np.ndarray | None = None
        reference: np.ndarray | None = None
        for name, scheme, kind in self.rows():
            plan_of = scheme if scheme != "float" else self.config.schemes[0]
            made_from = [
                self.identity, self.data_identity("calibration"), self.data_identity("evaluation"), scheme, kind,
                self.config.weights, self.config.classnames, self.config.templates,
                fingerprint(self.search(plan_of)["numbers"]),
            ]  # fmt: skip
            features_file = self.workdir.path / "features" / f"{fingerprint(made_from)}.npy"

            def make(
                name: str = name, scheme: str = scheme, kind: str = kind, file: epath.Path = features_file,
                reference: np.ndarray | None = reference,
            ) -> Json:  # fmt: skip
                nonlocal vectors
                vectors = self.vectors() if vectors is None else vectors
                found = self._measure(self.quantized(scheme, kind), vectors, reference, len(data))
                if name == "float":
                    write_array(file, found.features)
                return {"metrics": found.metrics, "quantization": self._description(scheme, kind, len(data))}

            stage = f"evaluate_{name.replace(' + ', '_').replace(' ', '_')}"
            result = self.workdir.stage(stage, made_from, make)
            if name == "float":
                reference = np.load(io.BytesIO(features_file.read_bytes()))
            quantization = {
                **result["quantization"],
                "row": name,
                "float_reference": rows[0]["metrics"] if rows else None,
            }
            rows.append(
                results.row(
                    dataset=data.name,
                    model=self.encoder.spec.name,
                    pretrained=str(self.config.model),
                    task="zeroshot_classification",
                    metrics=result["metrics"],
                    quantization=quantization,
                )
            )
        return rows

    def _measure(self, encoder: Encoder, vectors: np.ndarray, reference: np.ndarray | None, total: int) -> Measured:
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            self.observer.moved(done, total)

        size = loop.round_up(self.config.batch_size)
        return measure(
            encoder, vectors, batches(self.dataset("evaluation"), self.model.preprocess, size),
            reference=reference, parallel=self.config.parallel, micro_batch=self.config.micro_batch or None, progress=tell,
        )  # fmt: skip

    def _description(self, scheme: str, kind: str, examples: int) -> Json:
        """The `quantization` part of a row. Only the full plan counts as registers; its halves are methods of their own."""
        halves = ("prefix-only", "delete-only")
        quantized = scheme != "float"
        return {
            "scheme": scheme,
            "activations": ("token" if kind == "token" else "static") if quantized else None,
            "weights": self.config.weights if quantized else None,
            "method": kind if kind in halves else "rtn" if quantized else None,
            "registers": kind == "registers",
            "plan": "full" if kind == "registers" else kind if kind in halves else None,
            "examples": examples,
        }

    def figures(self) -> Json:
        """What the report draws: norms with the registers in place, and sink maps of a few pictures."""
        scheme = self.config.schemes[0]

        def make() -> Json:
            encoder = self.encoder.with_plan(self.plan(scheme, "registers"))
            profile = inspect(encoder, self.images("reference"), batch_size=self.config.search.chunk)
            return {
                "profile": profile.to_json(),
                "maps": sink_maps(self.encoder, encoder, self.dataset("evaluation"), self.model),
            }

        numbers = self.search(scheme)["numbers"]
        return self.workdir.stage("figures", [self.identity, self.data_identity("reference"), numbers], make)


def alternatives(result: SearchResult) -> dict[str, RegisterPlan]:
    """The plan of a search and its two halves. Delete-only takes the best deletion that the search has tried alone, since
    the full plan may delete nothing."""
    alone = [
        row for row in result.trials
        if row["numbers"]["start"] == row["numbers"]["stop"] and row["numbers"]["delete_count"] > 0
    ]  # fmt: skip
    plans = {
        "registers": result.plan,
        "prefix-only": result.plan.prefix_only(),
        "delete-only": result.plan.delete_only(),
    }
    if alone:
        numbers = min(alone, key=lambda row: (-row["chunks"], row["error"]))["numbers"]
        chosen = {name: jnp.int32(numbers[name]) for name in ("start", "stop", "delete_block", "delete_count")}
        plans["delete-only"] = result.plan.replace(**chosen)
    return plans


def write_array(path: epath.Path, array: np.ndarray) -> None:
    """Writes an .npy whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(buffer.getvalue())
    partial.replace(path)


def run(config: ConfigDict, workdir: epath.PathLike, observer: Observer | None = None) -> list[results.Row]:
    """Runs a config: inspect, search a plan for each scheme, evaluate every row, write results.json and report.html.

    Returns the rows. Raises UserError for what the user can put right."""
    from regcache_jax.report.page import write_page

    observer = observer or Observer()
    if not config.schemes:
        raise UserError("the config names no scheme; give config.schemes, such as ('w8a8',)")
    experiment = Experiment(config, workdir, observer)
    inspected = experiment.inspect()
    for finding in inspected["verdict"]["findings"]:
        observer.said(finding["sentence"])
    searched = {name: experiment.search(name) for name in config.schemes}
    for name, result in searched.items():
        observer.said(f"{name}: {result['sentence']}")
    rows = experiment.evaluate()
    check_float_accuracy(rows, config, observer)
    folder = epath.Path(workdir)
    results.write(folder / "results.json", rows)
    story = {
        "inspect": inspected,
        "search": searched,
        "figures": experiment.figures(),
        "config": json.loads(config.to_json_best_effort()),
    }
    results.write(folder / "story.json", story)
    write_page(folder / "report.html", rows, story)
    return rows


def check_float_accuracy(rows: list[results.Row], config: ConfigDict, observer: Observer) -> None:
    """Marks quantised rows invalid where the float accuracy is not the expected one (a full evaluation only)."""
    if not config.expected_acc1 or config.evaluation.limit:
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
