"""Checkpoints that are to be refused, and how that looks."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from regcache_jax.cli.main import main


def refused(source, tmp_path, match: str) -> str:
    """Runs `regcache convert`; asserts exit status 1, one message in one line, and no output left. Returns the message."""
    before = set(tmp_path.iterdir())
    printed = io.StringIO()
    with pytest.raises(SystemExit) as stopped, contextlib.redirect_stderr(printed):
        main(["convert", str(source), "--out", str(tmp_path / "model")])
    assert stopped.value.code == 1
    assert set(tmp_path.iterdir()) == before
    started, message = printed.getvalue().splitlines()
    assert started.startswith("converting ") and message.startswith("regcache: ")
    assert re.search(match, message), message
    return message


def rewrite(folder: Path, change) -> None:
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)
