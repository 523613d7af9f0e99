"""One run at a time on a thing: a work folder, a table, the name of what is being made.

A hidden file says who works there (host, process, since when) and is locked by the system, which lets go when a process ends in whatever
way: a file that is left by a killed run holds nobody up. Between hosts it works where the file system shares such locks (NFS 4 does). A
store of objects (gs://) has none: there one run at a time is the user's care.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator

from etils import epath

from regcache_jax.core.errors import UserError, shown
from regcache_jax.files.distributed import from_first

_held: dict[str, tuple[int, int]] = {}  # lock file -> its handle, and how often this process holds it
_guard = threading.Lock()


@contextlib.contextmanager
def held(path: epath.PathLike, *, folder: bool = False) -> Iterator[None]:
    """Exclusive use of a name while the block runs, or of what lies in a `folder`; the same process may ask for it again within. Folders
    that are not there are made, and the last of them goes again if it stays empty. Raises UserError that says who holds it."""
    if "://" in str(path):
        yield
        return
    path = os.path.realpath(path)
    within, name = (path, ".lock") if folder else (os.path.dirname(path), f".{os.path.basename(path)}.lock")
    file, is_new = os.path.join(within, name), not os.path.isdir(within)
    os.makedirs(within, exist_ok=True)
    with _guard:
        handle, count = _held.get(file) or (_take(file, path), 0)
        _held[file] = handle, count + 1
    try:
        yield
    finally:
        with _guard:
            handle, count = _held.pop(file)
            if count > 1:
                _held[file] = handle, count - 1
            else:
                with contextlib.suppress(OSError):  # the folder itself may be gone
                    os.unlink(file)  # before it is let go: who waits on it sees that it is another one
                os.close(handle)
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty: something was made
                os.rmdir(within)


@contextlib.contextmanager
def held_by_first(path: epath.PathLike) -> Iterator[None]:
    """The same of a folder, for several processes that work together: the first holds it, and none goes on where it cannot."""
    with contextlib.ExitStack() as stack:
        from_first(lambda: stack.enter_context(held(path, folder=True)))
        yield


def _take(file: str, path: epath.PathLike) -> int:
    """The handle of a locked file, which says who has it."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # the kind of lock that is a process's own: forked workers do not keep it when their parent is killed
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError | PermissionError):
                holder = os.pread(handle, 1000, 0)
                os.close(handle)
                raise UserError(
                    f"{shown(path)} is in use by {_told(holder)}; wait for its end or take another name"
                ) from None
            # else a file system without locks: one run at a time is the user's care there too
        try:
            same = os.path.samestat(os.fstat(handle), os.stat(file))
        except FileNotFoundError:
            same = False
        if same:
            since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            own = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(own).encode(), 0)
            return handle
        os.close(handle)  # its holder has just removed it


def _told(holder: bytes) -> str:
    """Who holds a lock, in words."""
    try:
        own = json.loads(holder)
        return shown(f"process {own['process']} on {own['host']} since {own['since']}")
    except (ValueError, TypeError, KeyError):
        return "another process"
