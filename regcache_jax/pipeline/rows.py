"""The rows of the table measured, each a stage of its own; with several processes all of them share every row's pictures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from regcache_jax.data import Dataset
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.evaluation import rows
from regcache_jax.evaluation.measure import Measured, describe
from regcache_jax.evaluation.tasks import classification, nearest_neighbours
from regcache_jax.files import results
from regcache_jax.files.distributed import from_first, is_first
from regcache_jax.files.paths import remove
from regcache_jax.files.workdir import Json, read_array, write_array
from regcache_jax.models import folder as checkpoints
from regcache_jax.pipeline.stages import Stages, model_folder
from regcache_jax.pipeline.table import KINDS, TableRow, note, table_rows

FEATURES, PREDICTIONS = "features/float.npy", "features/float_predictions.npy"


class Rows:
    """The measured rows of a config."""

    def __init__(self, stages: Stages) -> None:
        self.stages, self.material, self.config = stages, stages.material, stages.config
        self.reference = functools.cache(self._read_reference)

    def measured(self) -> list[results.Row]:
        """One result for each row of the table."""
        found: list[results.Row] = []
        for row in table_rows(self.config):
            result = self._evaluate(row)
            reference = found[0]["metrics"] if found else None
            found.append(
                results.row(
                    dataset=self.material.dataset("evaluation").name,
                    model=self.material.encoder.spec.name,
                    pretrained=str(self.config.model),
                    task=self.config.task,
                    metrics=result["metrics"],
                    quantization={**result["quantization"], "float_reference": reference},
                )
            )
        return found

    def _made_from(self, row: TableRow) -> list[Any]:
        """What a row depends on."""
        config, own = self.config, self.material
        made_from: list[Any] = [
            own.identity, own.data_identity("evaluation"), row, KINDS[row.kind], config.task, config.weights,
        ]  # fmt: skip
        if config.task == "knn":
            made_from += [config.neighbours, config.temperature, own.data_identity("bank")]
        else:
            made_from += [config.protocol, own.prompts()]
        made_from.append(config.allow_missing)
        if row.plan is not None:
            made_from.append(self.stages.search(self.stages.plan_of(row)).made_from)
        if row.scheme != "float":
            made_from.append(own.data_identity("calibration"))
        if row.is_model:
            made_from.append(self.stages.quantize(row.scheme).made_from)
        return made_from

    def _evaluate(self, row: TableRow) -> Json:
        """One row's metrics and description."""
        folder = self.material.workdir.path

        def make() -> Json:
            if row.is_model:
                encoder = checkpoints.load(folder / model_folder(row.scheme)).encoder
            else:
                encoder = self.stages.quantized(row)
            found = self._measure(encoder, None if row.is_reference else self.reference())
            if row.is_reference and is_first():
                write_array(folder / FEATURES, found.features)
                write_array(folder / PREDICTIONS, found.predictions)
            return {"metrics": found.metrics, "quantization": self._description(row, encoder, len(found.features))}

        files = [FEATURES, PREDICTIONS] if row.is_reference else []
        found = self.material.workdir.stage(row.stage, self._made_from(row), make, files, together=True).result
        from_first(lambda: remove(folder / rows.ROWS_FOLDER))  # chunks of a row that is done
        return found

    def _read_reference(self) -> Measured:
        """The float encoder's features and predictions, which its row has left."""
        folder = self.material.workdir.path
        return Measured({}, read_array(folder / FEATURES), read_array(folder / PREDICTIONS).astype(np.int32))

    def _measure(self, encoder: Encoder, reference: Measured | None) -> Measured:
        own, encode = self.material, functools.partial(self._encode, encoder)
        data = own.dataset("evaluation")
        if self.config.task == "zeroshot_classification":
            return classification(encode, data, own.class_vectors(), reference)[0]
        return nearest_neighbours(
            encode, data, own.dataset("bank"),
            neighbours=self.config.neighbours, temperature=self.config.temperature, reference=reference,
        )[0]  # fmt: skip

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

    def _description(self, row: TableRow, encoder: Encoder, examples: int) -> Json:
        """The `quantization` part of a row. Only the full plan counts as registers; its halves are methods of their own."""
        halves = ("prefix-only", "delete-only")
        scheme, schedule = encoder.scheme, encoder.schedule
        found = self.stages.search(self.stages.plan_of(row)).result if row.plan is not None else None
        return describe(
            encoder,
            examples,
            method=row.plan if row.plan in halves else None if scheme is None else scheme.method,
            estimator=None if scheme is None or not scheme.calibrated else scheme.estimator,
            registers=row.plan == "registers",
            plan="full" if row.plan == "registers" else row.plan,
            row=row.kind,
            protocol=self.config.protocol if self.config.task == "zeroshot_classification" else None,
            numbers=None if schedule is None else dataclasses.asdict(schedule),
            note=None if found is None else note(row.plan, found, schedule.delete_count if schedule else 0),
        )
