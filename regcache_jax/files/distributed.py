"""Several processes, often of several hosts, as one program: joining them, and what the first does alone.

`initialize` joins; afterwards `jax.devices()` are the devices of all. What is to be done once (writing, searching) the first process
does, and `from_first` gives its outcome to all; until then the others wait, for hours if need be.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from regcache_jax.core.errors import UserError

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""What says who belongs together where JAX cannot find it out (it can on a Cloud TPU, under Slurm and under Open MPI): host and
port of the first process, how many there are, and which this one is, from 0."""

WAIT_MS = 24 * 60 * 60 * 1000
_failed: list[str] = []  # what has stopped the first process and, told of it, all the others
_numbers = itertools.count()  # of the barriers: every process counts alike


def initialize() -> None:
    """Joins this process with the others; nothing where that is done already.

    Must come before anything that uses a device. Raises UserError where it is not known who the others are, and for a setting
    that is no number."""
    import jax

    if jax.distributed.is_initialized():
        return
    numbers = [_number(PROCESSES), _number(PROCESS)]
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow the signal that is to end a process
    try:
        jax.distributed.initialize(num_processes=numbers[0], process_id=numbers[1])
    except ValueError as error:
        raise UserError(
            f"--distributed does not know the other processes ({error}) On a Cloud TPU slice, under Slurm and under Open MPI they "
            f"are found; elsewhere set {COORDINATOR}=HOST:PORT, {PROCESSES} and {PROCESS} for each process"
        ) from None


def _number(name: str) -> int | None:
    """A setting of the environment; None where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"{name} must be a whole number from 0 on, got {text!r}")
    return int(text)


def leave(status: int) -> None:
    """Ends a process that has failed alone among several, without waiting for the others as an orderly end does: they wait for
    it, and learn of its end only by that. Returns where all have failed, and where there is only one."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized() and not _failed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_first() -> bool:
    """Whether this process is the one that writes and speaks: the first of several, or the only one. Starts no device."""
    jax = sys.modules.get("jax")  # not imported: not joined
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, a tree of JSON, in all of them. They must all call this, in the same order.

    What `make` raises is raised in the first; the others raise a UserError that says it."""
    if _alone():
        return make()
    told = json.dumps(None)
    if is_first():
        try:
            told = json.dumps({"outcome": make()})
        except BaseException as error:
            _failed.append(str(error) or type(error).__name__)
            _gathered(json.dumps({"error": _failed[-1]}))
            raise
    found = json.loads(_gathered(told)[0])
    if "error" in found:
        _failed.append(found["error"])
        raise UserError(f"the first process failed: {found['error']}")
    return found["outcome"]


def everyone(own: Any) -> list[Any]:
    """A tree of JSON of every process, in their order, in all of them. They must all call this, in the same order."""
    told = json.dumps(own)
    return [json.loads(text) for text in ([told] if _alone() else _gathered(told))]


def barrier() -> None:
    """Waits until all processes have come here."""
    if not _alone():
        from orbax.checkpoint.multihost import get_barrier_sync_fn

        get_barrier_sync_fn()(key=f"regcache/barrier/{next(_numbers)}", timeout_ms=WAIT_MS)


def _gathered(own: str) -> list[str]:
    """A text of every process, in their order, once all have come: a collective holds devices and ends after minutes, so none begins
    while one of them is still at work."""
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    barrier()
    written = np.frombuffer(own.encode(), np.uint8)
    lengths = process_allgather(np.int32(len(written)))
    row = np.zeros(2 ** int(lengths.max()).bit_length(), np.uint8)  # of few lengths: each is a program of its own
    row[: len(written)] = written
    return [bytes(text[:length]).decode() for text, length in zip(process_allgather(row), lengths, strict=True)]


def _alone() -> bool:
    import jax

    return not jax.distributed.is_initialized() or jax.process_count() == 1
