"""What users add from outside: a layout of checkpoints, a method, an objective, a task, each by a `register` where its table is.

`regcache --with MODULE ...` imports a module that registers, before any command is read.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from regcache_jax.core.errors import UserError, shown

T = TypeVar("T")
ADDED: dict[str, list[str]] = {"task": [], "objective": []}
"""Words of the command line that were added, by what they name."""


def enter(table: dict[str, T], name: str, value: T, kind: str) -> None:
    """Puts something into a table under a name of its own. Raises UserError for a name that is taken, and for one that no command line
    could say."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"a {kind} is called by letters, digits, _, . and -, got {shown(repr(name))}")
    if name in table:
        raise UserError(f"there is a {kind} {name} already; there are {', '.join(table)}")
    table[name] = value
    if kind in ADDED:
        ADDED[kind].append(name)


def load_modules(names: Iterable[str]) -> None:
    """Imports modules that register: each is installed, or a file of this folder. Raises UserError for one that there is not."""
    for name in names:
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # one that the module itself asks for
                raise
            raise UserError(f"there is no module {shown(name)}, neither installed nor in this folder") from None
