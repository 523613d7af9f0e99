"""What kills leave, at every moment of a job, and that the job ends the same from each.

A process that is killed leaves its folder as it was at that moment. So a copy of the folder from before each of its changes is what a
kill there would leave, and one undisturbed run in this process shows all of them. Python announces changes of files in audit events;
`watch` copies at each of them, and `check_every_moment` starts the job again from every copy. That a kill is no more than that is shown
by one real SIGKILL for each command (cli/test_cli_killed.py).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

EVENTS = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"}
"""What changes a folder; `open` does where it may write."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

TINY = (
    "--config.task=knn", "--config.neighbours=3", "--config.schemes=w8a8", "--config.rows=plain,registers",
    "--config.reference.limit=6", "--config.calibration.limit=6", "--config.evaluation.limit=8", "--config.bank.limit=8",
    "--config.evaluation.split=train", "--config.search.max_trials=4", "--config.search.chunk=6", "--config.batch_size=8",
)  # fmt: skip
"""What makes the demo's config one for a small encoder without a tokenizer, and quick."""

State = dict[str, tuple[bytes, int] | None]
"""A folder's files, their bytes and times, and its folders (None), by their names below it."""


class _Watch:
    """The states that a folder goes through, each once as long as it lasts."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.states: list[State] = []
        self._looking = threading.RLock()
        self._busy = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or not is_change(event, arguments):
            return
        where = arguments[0]
        # a name that does not begin with / is relative to an open folder, and a number is a file: those may be ours
        if isinstance(where, str | os.PathLike) and os.path.isabs(where) and str(self.folder) not in str(where):
            return
        self.look()

    def look(self) -> None:
        with self._looking:
            if not self._busy and self.folder is not None and self.folder.exists():
                self._busy = True
                state = _read(self.folder)
                if not self.states or state != self.states[-1]:
                    self.states.append(state)
                self._busy = False


_watch = _Watch()
_installed: list[_Watch] = []  # a hook stays as long as the process


def is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event announces a change of files."""
    return event in EVENTS and (event != "open" or bool(arguments[2] & WRITES))


def watch(job: Callable[[Path], Any], folder: Path) -> list[State]:
    """Runs a job to its end; what kills at every moment of it would have left, the end included."""
    if not _installed:
        sys.addaudithook(_watch)
        _installed.append(_watch)
    _watch.folder, _watch.states = folder, []
    try:
        job(folder)
        _watch.look()
        return _watch.states
    finally:
        _watch.folder, _watch.states = None, []


def check_every_moment(
    job: Callable[[Path], Any], outcome: Callable[[Path], dict[str, Any]], folder: Path, *, each_file: bool = False
) -> int:
    """Runs the job once, and again from what a kill at every moment would have left: each must end with the outcome of the first.
    The run that goes on from the middle may be killed as well, at every moment.

    `each_file`: for jobs that take long, one run alone, and of the moments between which no finished file comes or goes the last
    alone, when most lies about half-written. Returns the number of moments tried."""
    with mock.patch("os.fsync"):  # for a disk that loses power; a killed process has written what it has written
        states = watch(job, folder / "undisturbed")
        expected = outcome(folder / "undisturbed")
        if each_file:
            states = [state for state, later in pairwise([*states, {}]) if _finished(state) != _finished(later)]
        else:
            _write(states[len(states) // 2], folder / "middle")
            states += watch(job, folder / "middle")
        for number, state in enumerate(states):
            again = folder / f"killed{number}"
            _write(state, again)
            job(again)
            found = outcome(again)
            different = [name for name in {*expected, *found} if found.get(name) != expected.get(name)]
            assert not different, f"killed at moment {number} of {len(states)}: {again} differs in {different}"
    return len(states)


def _finished(state: State) -> State:
    """What has its name: hidden files and folders are being made."""
    return {
        name: held for name, held in state.items() if held is not None and not name.startswith(".") and "/." not in name
    }


def _read(folder: Path) -> State:
    state: State = {}
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # another thread goes on, and the last user of a log lets go of it
            # a lock is lost when its file is read and closed by the process that has it; nobody asks for what it holds
            content = b"" if path.name.endswith(".lock") else None if path.is_dir() else path.read_bytes()
            state[str(path.relative_to(folder))] = None if content is None else (content, path.stat().st_mtime_ns)
    return state


def _write(state: State, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, held in state.items():
        if held is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(held[0])
            os.utime(folder / name, ns=(held[1], held[1]))


def in_a_fresh_process(script: str, *arguments: object) -> str:
    """Runs a script that may fork, as this process, in which JAX has started, may not; returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
