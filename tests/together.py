"""One or more processes of two simulated devices each, forked from one that has imported everything and not yet started JAX."""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from killing import is_change


def run_together(
    arguments: Sequence[str], processes: int, log: Path, kill_after: int | None = None, delay: float = 0.0
) -> tuple[bool, int]:
    """Runs one command in all processes; whether it came to its end, and how often the first changed files of the log's folder (counted by
    audit events). Right before change number `kill_after`, or `delay` seconds after it, all processes are killed at once.

    Raises RuntimeError where one fails by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    read, write = os.pipe()
    children = []
    for process in range(processes):
        child = os.fork()
        if child == 0:
            if processes > 1:
                os.environ |= {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(process),
                }
            own = [*arguments, *(["--distributed"] if processes > 1 else [])]
            os._exit(_work(own, log, process, write, None if delay else kill_after))
        children.append(child)
    os.close(write)
    seen = _watch(read, children, kill_after, delay)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if kill_after is None or not any(status == -signal.SIGKILL for status in statuses):
        if any(statuses):
            said = "\n".join(log.with_suffix(f".{process}.err").read_text()[-2000:] for process in range(processes))
            raise RuntimeError(f"the command ended with {statuses}: {said}")
        return True, seen
    return False, seen


def _watch(read: int, children: list[int], kill_after: int | None, delay: float) -> int:
    """How many events there were until the end, or until the children are killed."""
    seen = 0
    timer = threading.Timer(delay, lambda: [os.kill(child, signal.SIGKILL) for child in children])
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while pipe.read(1):
            seen += 1
            if seen == kill_after:
                timer.start()
    timer.cancel()
    return seen


def _work(arguments: Sequence[str], log: Path, process: int, pipe: int, stop_before: int | None) -> int:
    folder, changes = str(log.parent), itertools.count(1)

    def hook(event: str, given: tuple) -> None:
        if is_change(event, given) and folder in str(given[0]):
            os.write(pipe, b".")
            if next(changes) == stop_before:
                time.sleep(60)  # until the kill comes

    try:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(log.with_suffix(f".{process}.{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        if process == 0:
            sys.addaudithook(hook)
        else:
            os.close(pipe)
        from regcache_jax.cli.main import main

        main(list(arguments))
    except SystemExit as end:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # JAX leaves the others in order
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    return 1
