"""About how long a run will take, said before it begins; of what a work folder holds already nothing is counted."""

from __future__ import annotations

from collections.abc import Iterator

from regcache_jax.pipeline.material import Material
from regcache_jax.pipeline.rows import stage_of
from regcache_jax.pipeline.stages import SENSITIVITY_PICTURES
from regcache_jax.pipeline.table import table_cells
from regcache_jax.registers.stakes import PICTURES
from regcache_jax.studies.pace import Pace


def seconds_left(material: Material) -> float:
    """Seconds of the stages that are not there yet."""
    stages = material.workdir.path / "stages"
    return sum(seconds for name, seconds in _stages(material) if not (stages / f"{name}.json").exists())


def _stages(material: Material) -> Iterator[tuple[str, float]]:
    """The stages that take long, by name, and the seconds of each."""
    config, pace = material.config, Pace(material.encoder)
    reference, calibration, evaluation = (
        len(material.dataset(which)) for which in ("reference", "calibration", "evaluation")
    )
    looked_at = pace.passes(2 * reference) + pace.sensitivity(min(SENSITIVITY_PICTURES, reference))
    yield "inspect", looked_at + pace.stakes(min(PICTURES, reference))
    for name in config.schemes:
        yield f"search_{name}", pace.search(reference, config.search.search_config())
        yield f"quantize_{name}", pace.passes(calibration)
    bank = len(material.dataset("bank")) if config.task == "knn" else 0
    for cell in table_cells(config):
        yield stage_of(cell), pace.cells(1, 0 if cell.bits == "float" else calibration, evaluation + bank)
    yield "figures", looked_at
