"""Kills a job twenty times while it works on its folder, and each time lets it go on: what it leaves must be what an
undisturbed run leaves. A run is killed several times on its way, early and late, before it comes to its end.

Children are forked from a process that has imported everything and not yet started JAX, so that a run costs no imports. A child
counts what it does to files of its folder (Python's audit events), and after a drawn number of them and a few drawn milliseconds
it is killed. Moments are so drawn from the work and not from the clock: a busy machine does not move them out of the run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


def run(
    job: Callable[[Path], Any], folder: Path, kill_after: int | None = None, delay: float = 0.0
) -> tuple[bool, int]:
    """Whether the job came to its end in a child of its own, and how many events of its folder the child has seen.

    Raises RuntimeError where the child fails by itself."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(_work(job, folder, kill_after, delay, write))
    os.close(write)
    seen = len(os.fdopen(read, "rb").read())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the job fails with status {status} (see above)")
    return status == 0, seen


def _work(job: Callable[[Path], Any], folder: Path, kill_after: int | None, delay: float, pipe: int) -> int:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and str(folder) in str(arguments[0]):
            os.write(pipe, b".")
            seen += 1
            if seen == kill_after:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    sys.addaudithook(hook)
    try:
        job(folder)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def kill_and_compare(job: Callable[[Path], Any], outcome: Callable[[Path], Any], folder: Path, kills: int = 20) -> None:
    """Kills the job at `kills` drawn moments; a run that comes to its end must leave the outcome of an undisturbed one."""
    _, events = run(job, folder / "undisturbed")
    expected, moments, killed, turn = outcome(folder / "undisturbed"), random.Random(0), 0, 0
    while killed < kills:
        turn += 1
        work, ended = folder / f"killed{turn}", False
        while not ended:
            last = killed == kills
            kill_after = None if last else moments.randint(1, max(2, events // 3))
            ended, _ = run(job, work, kill_after, moments.uniform(0.0, 0.02))
            killed += not ended
        found = outcome(work)
        assert found == expected, f"after {killed} kills {work} holds {found}, expected {expected}"
    print(f"{killed} kills, {turn} runs to the end, {events} events", flush=True)


def in_a_fresh_process(script: str, folder: Path, *arguments: str) -> str:
    """Runs a script that calls `kill_and_compare`, with compiled programs kept in the folder; returns what it prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiling is most of the work
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", script, str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
