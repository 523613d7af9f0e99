"""About how long a run will take, said before it begins; of what a work folder holds already nothing is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from regcache_jax.pipeline.material import Material
from regcache_jax.pipeline.rows import stage_of
from regcache_jax.pipeline.stages import SENSITIVITY_PICTURES
from regcache_jax.pipeline.table import table_cells
from regcache_jax.registers.stakes import PICTURES
from regcache_jax.studies.pace import Pace


def seconds_left(material: Material) -> float:
    """Seconds of the stages that are not there yet; where all are, nothing is measured."""
    stages = material.workdir.path / "stages"
    return sum(_seconds(material, lambda name: not (stages / f"{name}.json").exists()))


def _seconds(material: Material, missing: Callable[[str], bool]) -> Iterator[float]:
    """Of the stages that take long, those that are missing."""
    config, pace = material.config, Pace(material.encoder)
    reference, calibration, evaluation = (
        len(material.dataset(which)) for which in ("reference", "calibration", "evaluation")
    )
    looks = missing("inspect") + missing("figures")
    if looks:
        yield looks * (pace.passes(2 * reference) + pace.sensitivity(min(SENSITIVITY_PICTURES, reference)))
    if missing("inspect"):
        yield pace.stakes(min(PICTURES, reference))
    for name in config.schemes:
        if missing(f"search_{name}"):
            yield pace.search(reference, config.search.search_config())
        if missing(f"quantize_{name}"):
            yield pace.passes(calibration)
    bank = len(material.dataset("bank")) if config.task == "knn" else 0
    for cell in table_cells(config):
        if missing(stage_of(cell)):
            yield pace.cells(1, 0 if cell.bits == "float" else calibration, evaluation + bank)
