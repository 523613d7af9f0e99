"""What is checked of a config before it runs, and of its float accuracy afterwards."""

from __future__ import annotations

from regcache_jax.core.errors import UserError
from regcache_jax.core.observer import Observer
from regcache_jax.core.scheme import Scheme
from regcache_jax.files import results
from regcache_jax.pipeline.config import RunConfig
from regcache_jax.pipeline.table import KINDS
from regcache_jax.studies.cost import price_of

ACCURACY_TOLERANCE = 0.003
"""How far the float accuracy may lie from the published one before quantised numbers are called invalid."""


def check_config(config: RunConfig) -> None:
    """Raises UserError that names everything in a config that cannot be run."""
    faults = []
    if not config.schemes:
        faults.append("it names no scheme; give config.schemes, such as ('w8a8',)")
    for name in config.schemes:
        if Scheme.named(name) is None:
            faults.append("scheme float is always in the table; config.schemes are the quantised ones")
    if unknown := [kind for kind in config.rows if kind not in KINDS]:
        faults.append(f"rows {', '.join(unknown)} are unknown; rows are {', '.join(KINDS)}")
    price_of(config.cost)
    if faults:
        raise UserError(f"the config cannot be run: {'; '.join(faults)}")


def check_float_accuracy(rows: list[results.Row], config: RunConfig, observer: Observer) -> None:
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
