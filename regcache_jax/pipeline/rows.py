"""The rows of the table measured, each a stage of its own; with several processes all of them share every row's pictures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regcache_jax.data import Dataset
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.evaluation import rows
from regcache_jax.evaluation.job import Found, Job, Options
from regcache_jax.evaluation.measure import Measured, describe
from regcache_jax.evaluation.tasks import TASKS
from regcache_jax.files import results
from regcache_jax.files.distributed import from_first, is_first
from regcache_jax.files.paths import remove
from regcache_jax.files.workdir import Json, read_array, write_array
from regcache_jax.models import folder as checkpoints
from regcache_jax.pipeline import changes
from regcache_jax.pipeline.stages import Stages, model_folder
from regcache_jax.pipeline.table import FLOAT, KINDS, is_model, kind_of, model_cell, note, table_cells
from regcache_jax.report.tables import RIVALS
from regcache_jax.studies.cells import Cell, Entry, kept
from regcache_jax.studies.cost import cost

FEATURES, PREDICTIONS = "features/float.npy", "features/float_predictions.npy"


class Rows:
    """The measured rows of a config."""

    def __init__(self, stages: Stages) -> None:
        self.stages, self.material, self.config = stages, stages.material, stages.config
        self.reference = functools.cache(self._read_reference)

    def measured(self) -> list[results.Row]:
        """One result for each row of the table."""
        found: list[results.Row] = []
        for cell in table_cells(self.config):
            entry = self._evaluate(cell)
            reference = found[0]["metrics"] if found else None
            found.append(
                results.row(
                    dataset=self.material.dataset("evaluation").name,
                    model=self.material.encoder.spec.name,
                    pretrained=str(self.config.model),
                    task=self.config.task,
                    metrics=entry.metrics,
                    quantization={**entry.described, "float_reference": reference},
                )
            )
        return found

    def differences(self) -> Json:
        """What the rows have changed, for the report. Of every scheme the float encoder, plain rounding and the full plan are held
        together, as far as the config asks for them."""
        folder, dataset = self.material.workdir.path, self.material.dataset("evaluation")
        answers = {cell: changes.read_answers(folder, stage_of(cell)) for cell in table_cells(self.config)}
        told: Json = {"intervals": [changes.intervals_of(each) for each in answers.values()], "schemes": {}}
        sizes = {"float": changes.parameter_bytes(self.material.model.folder)}
        names = self._class_name(answers[FLOAT])
        for scheme in self.config.schemes:
            compared = {"float": answers[FLOAT]} | {
                kind: answers[Cell(scheme, *KINDS[kind])] for kind in ("plain", "registers") if kind in self.config.rows
            }
            rows = list(compared.values())
            both = "plain" in compared and "registers" in compared
            told["schemes"][scheme] = {
                "rows": list(compared),
                "gain": changes.gain_of(compared["plain"], compared["registers"]) if both else None,
                "loss": changes.gain_of(answers[FLOAT], rows[-1]),
                "rivals": self._rivals(scheme, answers) if "registers" in compared else {},
                "classes": changes.classes_of(rows, names),
                "flips": changes.flips_of(rows, dataset, names) if len(rows) > 1 else None,
            }
            sizes[scheme] = changes.parameter_bytes(folder / model_folder(scheme))
        return told | {"bytes": sizes}

    def _rivals(self, scheme: str, answers: Mapping[Cell, changes.Answers]) -> Json:
        """How much more than the full plan each row gets right that does without registers."""
        full = answers[model_cell(scheme)]
        return {
            kind: changes.gain_of(full, answers[Cell(scheme, *KINDS[kind])])
            for kind in self.config.rows
            if kind in RIVALS
        }

    def _class_name(self, answers: changes.Answers) -> Callable[[int], str]:
        """What a class is called. k-NN numbers classes anew, so they are known by the pictures that are of them."""
        data = self.material.dataset("evaluation")
        if self.config.task != "knn":
            names: Mapping[int, str] = dict(enumerate(self.material.prompts().classnames))
        elif data.labels is None or data.classnames is None:
            names = {}
        else:
            pairs = zip(answers.labels, answers.places, strict=True)
            names = {int(label): data.classnames[data.labels[int(place)] or 0] for label, place in pairs}
        return lambda label: names.get(label, "none" if label < 0 else f"class {label}")

    def _made_from(self, cell: Cell) -> list[Any]:
        """What a row depends on."""
        config, own = self.config, self.material
        made_from: list[Any] = [
            "answers, cost", own.identity, own.data_identity("evaluation"), dataclasses.asdict(cell), config.task, config.weights,
        ]  # fmt: skip
        if config.task == "knn":
            made_from += [config.neighbours, config.temperature, own.data_identity("bank")]
        else:
            made_from += [config.protocol, own.prompts()]
        made_from.append(config.allow_missing)
        if cell.plan is not None:
            made_from.append(self.stages.search(self.stages.scheme_of(cell)).made_from)
        if cell.bits != "float":
            made_from.append(own.data_identity("calibration"))
        if is_model(cell):
            made_from.append(self.stages.quantize(cell.bits).made_from)
        return made_from

    def _evaluate(self, cell: Cell) -> Entry:
        """One row's metrics and description."""
        folder, is_reference, stage = self.material.workdir.path, cell == FLOAT, stage_of(cell)

        def attempt() -> Entry:
            if is_model(cell):
                encoder = checkpoints.load(folder / model_folder(cell.bits)).encoder
            else:
                encoder = self.stages.encoder_of(cell)
            found = self._measure(encoder, None if is_reference else self.reference())
            if is_first():
                changes.write_answers(folder, stage, found.measured, None if is_reference else self.reference())
            if is_reference and is_first():
                write_array(folder / FEATURES, found.measured.features)
                write_array(folder / PREDICTIONS, found.measured.predictions)
            described = self._description(cell, encoder, found.examples)
            return Entry(cell, metrics=found.measured.metrics, described=described)

        files = [changes.answers_file(stage), *([FEATURES, PREDICTIONS] if is_reference else [])]
        found = kept(self.material.workdir, stage, self._made_from(cell), attempt, files, together=True)
        from_first(lambda: remove(folder / rows.ROWS_FOLDER))  # chunks of a row that is done
        return found

    def _read_reference(self) -> Measured:
        """The float encoder's features and predictions, which its row has left."""
        folder = self.material.workdir.path
        return Measured({}, read_array(folder / FEATURES), read_array(folder / PREDICTIONS).astype(np.int32))

    def _measure(self, encoder: Encoder, reference: Measured | None) -> Found:
        own, config, task = self.material, self.config, TASKS[self.config.task]
        job = Job(
            own.model, encoder, functools.partial(self._encode, encoder), own.dataset("evaluation"),
            bank=own.dataset("bank") if task.trained else None, prompts=own.prompts() if task.worded else None,
            options=Options(config.neighbours, config.temperature), cache=own.cache, reference=reference,
        )  # fmt: skip
        found = task.run(job)
        for line in found.notes:
            own.observer.said(line)
        return found

    def _encode(self, encoder: Encoder, encode: Callable[[Encoder, Any], Any], data: Dataset) -> rows.Rows:
        config, done = self.config, 0
        which = "evaluation" if data is self.material.dataset("evaluation") else "bank"

        def tell(count: int) -> None:
            nonlocal done
            done += count
            self.material.observer.moved(done, len(data), which)

        setting = rows.Setting(
            config.batch_size, config.parallel, config.micro_batch or "auto", config.workers, config.allow_missing,
            self.material.workdir.path,
        )  # fmt: skip
        preparation = self.material.protocol.preprocessing(self.material.encoder.spec.preprocessing)
        found = rows.encode_dataset(
            encode, encoder, data, preparation, setting, progress=tell, tell=self.material.observer.said
        )
        for message in found.missing:
            self.material.observer.said(f"left out: {message}")
        return found

    def _description(self, cell: Cell, encoder: Encoder, examples: int) -> Json:
        """The `quantization` part of a row. Only the full plan counts as registers; its halves are methods of their own."""
        halves = ("prefix-only", "delete-only")
        scheme, schedule = encoder.scheme, encoder.schedule
        found = self.stages.search(self.stages.scheme_of(cell)).result if cell.plan is not None else None
        return describe(
            encoder,
            examples,
            method=cell.plan if cell.plan in halves else None if scheme is None else scheme.method,
            estimator=None if scheme is None or not scheme.calibrated else scheme.estimator,
            registers=cell.plan == "registers",
            plan="full" if cell.plan == "registers" else cell.plan,
            row=kind_of(cell),
            cost=cost(encoder),
            protocol=self.config.protocol if self.config.task == "zeroshot_classification" else None,
            numbers=None if schedule is None else dataclasses.asdict(schedule),
            note=None if found is None else note(cell.plan, found, schedule.delete_count if schedule else 0),
        )


def stage_of(cell: Cell) -> str:
    """The stage that measures a cell."""
    return f"evaluate_{cell.bits}_{kind_of(cell)}"
