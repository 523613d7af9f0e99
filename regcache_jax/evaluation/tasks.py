"""The tasks by name: a new one is a file in `evaluators/` with a `run`, and a line here."""

from __future__ import annotations

from regcache_jax.core.registry import enter
from regcache_jax.evaluation.evaluators import (
    classification,
    dense,
    knn,
    linear_probe,
    tower,
    zeroshot_classification,
    zeroshot_retrieval,
)
from regcache_jax.evaluation.job import Task

TASKS: dict[str, Task] = {
    "zeroshot_classification": Task(zeroshot_classification.run, worded=True),
    "zeroshot_retrieval": Task(zeroshot_retrieval.run),
    "classification": Task(classification.run),
    "knn": Task(knn.run, trained=True),
    "linear_probe": Task(linear_probe.run, trained=True),
    "dense": Task(dense.run, trained=True),
    "tower": Task(tower.run),
}


def register(name: str, task: Task) -> None:
    """Adds a task, for `regcache --with MODULE evaluate --task NAME`. Raises UserError for a name that is taken."""
    enter(TASKS, name, task, "task")
