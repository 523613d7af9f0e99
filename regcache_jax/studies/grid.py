"""The grid recipes x bits x {no registers, registers} on two sets of pictures: label-free error, accuracy and cost of each cell.

Every entry is a stage of a work folder; a comparison that is killed goes on with those that are missing, and what was made from other
things (encoder, pictures, plan, cost) is made anew. An entry that cannot be (rotation with a plan that deletes) says why instead of a
number.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import Objective, name_of, reads_patches
from regcache_jax.core.outputs import Outputs, feature_errors, image_errors
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.identity import content_hash
from regcache_jax.files.workdir import Workdir
from regcache_jax.registers.outputs import outputs_of
from regcache_jax.studies.cells import Cell, Entry, Images, kept
from regcache_jax.studies.cost import MODEL, Price


class Judge(NamedTuple):
    """Metrics of the scored pictures' features, as fractions (acc1 and so on), and what tells this judge from others."""

    identity: str
    metrics: Callable[[Float[np.ndarray, "_ E"]], Mapping[str, float]]


def features_of(encoder: Encoder, images: Images, batch_size: int = 64) -> Float[np.ndarray, "n E"]:
    """Pooled features of an array of images."""
    return np.asarray(outputs_of(encoder, images, batch_size, patches=False).pooled)


def mean_error(errors: Float[np.ndarray, "..."]) -> float:
    """The mean over images and draws, to six digits (below them is the order of additions)."""
    return float(f"{np.mean(errors):.6g}")


def label_free_error(features: Float[np.ndarray, "n E"], reference: Float[np.ndarray, "n E"]) -> float:
    """The mean error of pooled features."""
    return mean_error(feature_errors(features, reference))


@dataclasses.dataclass(frozen=True)
class Bench:
    """What cells are tried on: `calibration` pictures give the scales; of `scoring` pictures (others) the label-free error and, by a
    `judge`, any metrics are measured; `price` gives the cost. `plans`: the registers for a number of bits. `objective`: what the
    label-free error is. `draws`: into how many parts the calibration pictures are dealt, each of which makes the encoder anew."""

    encoder: Encoder
    calibration: Images
    scoring: Images
    plans: Mapping[str, RegisterPlan] = dataclasses.field(default_factory=dict)
    judge: Judge | None = None
    price: Price = MODEL
    batch_size: int = 64
    objective: Objective = "pooled"
    draws: int = 1

    def __post_init__(self) -> None:
        if self.objective == "accuracy":
            raise UserError("recipes are compared by an error without labels: pooled, patches, both, or a function")

    @functools.cached_property
    def reference(self) -> Outputs:
        """The float encoder's outputs of the scored pictures."""
        return self.outputs(self.encoder.with_plan(None))

    def outputs(self, encoder: Encoder) -> Outputs:
        """An encoder's outputs of the scored pictures, as far as the objective reads them."""
        return outputs_of(encoder, self.scoring, self.batch_size, patches=reads_patches(self.objective))

    @functools.cached_property
    def identity(self) -> list[str | None]:
        """What every cell's numbers depend on."""
        judge = None if self.judge is None else self.judge.identity
        spec = json.dumps(self.encoder.spec.to_json(), sort_keys=True)
        pictures = content_hash((self.encoder.params, self.calibration, self.scoring))
        return [spec, pictures, judge, self.price.unit, name_of(self.objective), str(self.draws)]

    def encoder_of(self, cell: Cell, draw: int | None = None) -> Encoder:
        """The encoder that a cell speaks of, made with all calibration pictures or with those of a draw. Raises UserError for a recipe
        that does not go with the plan."""
        pictures = self.calibration if draw is None else self.calibration[draw :: self.draws]
        return cell.encoder(self.encoder, lambda: pictures, self.plans.get(cell.bits))

    def made_from(self, cell: Cell) -> list[Any]:
        """What a cell's numbers depend on."""
        plan = None if cell.plan is None else content_hash(self.plans[cell.bits])
        scheme = cell.scheme()
        return [*self.identity, dataclasses.asdict(cell), None if scheme is None else scheme.to_json(), plan]

    def measured(self, quantized: Encoder) -> tuple[Float[np.ndarray, "n"], dict[str, float]]:
        """Label-free errors of the scored pictures, and metrics, of an encoder."""
        outputs = self.outputs(quantized)
        metrics = {} if self.judge is None else self.judge.metrics(np.asarray(outputs.pooled))
        errors = image_errors(self.objective, outputs, self.reference)
        return errors, {name: float(value) for name, value in metrics.items()}

    def attempt(self, cell: Cell) -> Entry:
        """What comes of a cell."""
        began = time.monotonic()
        try:
            made = [self.encoder_of(cell, draw) for draw in range(self.draws)]
        except UserError as fault:
            return Entry(cell, fault=str(fault))
        drawn = [self.measured(each) for each in made]
        errors = np.stack([each for each, _ in drawn])
        metrics = {name: float(np.mean([each[name] for _, each in drawn])) for name in drawn[0][1]}
        rounded = [[float(f"{error:.4g}") for error in each] for each in errors]  # below is the order of additions
        entry = Entry(cell, mean_error(errors), None, metrics, round(time.monotonic() - began, 1), errors=rounded)
        try:
            return dataclasses.replace(entry, cost=self.price.of(made[0]))
        except UserError as fault:
            return dataclasses.replace(entry, note=f"cost unknown: {fault}")


def compare(bench: Bench, cells: Sequence[Cell], workdir: Workdir, stage: str = "evaluate") -> list[Entry]:
    """Tries every cell, or finds again in the work folder what came of it (under `stage` and its name)."""
    entries: list[Entry] = []
    for cell in cells:
        attempt = functools.partial(bench.attempt, cell)
        entries.append(kept(workdir, f"{stage}_{cell.name}", bench.made_from(cell), attempt))
        workdir.observer.moved(len(entries), len(cells), cell.name)
    return entries
