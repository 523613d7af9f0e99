"""What happens in a long command, for a log: one JSON object a line, appended as it happens, by any number of processes."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from regcache_jax.core.errors import UserError, shown


@runtime_checkable
class Events(Protocol):
    """Hears of an event: its name, and what there is to say of it, as JSON has it."""

    def __call__(self, event: str, **facts: object) -> None:
        """One line of the log."""


def nobody(event: str, **facts: object) -> None:
    """Hears and forgets."""


@contextlib.contextmanager
def events(path: str | None) -> Iterator[Events]:
    """Appends to a file; every line says `event`, `time` (UTC), `host` and `process` too. What ends the block with an error is `failed`,
    with the message. A line is one write, so that processes may share the file. Raises UserError where nothing can be appended."""
    if path is None:
        yield nobody
        return
    if "://" in path:
        raise UserError(f"{shown(path)}: lines cannot be appended to an object of a store; give a file of this machine")
    who = {"host": socket.gethostname(), "process": os.getpid()}
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be written: {error.strerror}") from None

    def tell(event: str, **facts: object) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        os.write(log, (json.dumps({"event": event, "time": now, **who, **facts}) + "\n").encode())

    try:
        yield tell
    except BaseException as error:
        tell("failed", error=str(error) or type(error).__name__)
        raise
    finally:
        os.close(log)
