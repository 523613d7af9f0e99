"""Stops a job at its k-th file event, as a kill does (nothing more is done to files) or as a full disk does (this once).

Events are Python's own audit events of writing, and `os.write` and `os.fsync`, which have none."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

MAKING = {"os.mkdir", "os.rename", "os.truncate"}
REMOVING = {"os.remove", "os.rmdir", "shutil.rmtree"}
FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killed(BaseException):
    """What a killed process sees: nothing of its own runs any more."""


class Stopper:
    """Counts the events below a folder; from the k-th on (or at the k-th alone) they do not happen."""

    def __init__(self) -> None:
        self.folder, self.seen, self.at, self.full = "", 0, 0, False
        sys.addaudithook(self._hear)
        for name in ("write", "fsync"):
            setattr(os, name, self._audited(getattr(os, name)))

    def _audited(self, function):
        def called(handle, *arguments):
            if self.at:
                self._count(os.readlink(f"/proc/self/fd/{handle}"))
            return function(handle, *arguments)

        return called

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.at:
            return
        writing = MAKING if self.full else MAKING | REMOVING  # a full disk lets one remove
        if event in writing or (event == "open" and isinstance(arguments[2], int) and arguments[2] & FLAGS):
            self._count(str(arguments[0]))

    def _count(self, path: str) -> None:
        if not path.startswith(self.folder):
            return
        self.seen += 1
        if self.full and self.seen == self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if not self.full and self.seen >= self.at:
            raise Killed

    def stops(self, job: Callable[[Path], object], folder: Path, at: int, full: bool) -> bool:
        """Whether the job was stopped at that event, or came to its end before it."""
        self.folder, self.seen, self.at, self.full = str(folder), 0, at, full
        try:
            job(folder)
        except (Killed, OSError):
            return True
        finally:
            self.at = 0
        return self.seen >= at  # a fault that the job could do without


STOPPER = Stopper()


def leftovers(folder: Path) -> list[str]:
    """Hidden files and folders below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))
