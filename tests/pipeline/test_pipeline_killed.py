"""A run of the pipeline that is killed, that finds its disk full, or that may not write: nothing lost, one message."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import types

import pytest
import safetensors.numpy
from etils import epath
from killing import TINY, check_every_moment
from randomized import save_random, siglip

from regcache_jax import pipeline
from regcache_jax.cli.main import main
from regcache_jax.cli.run import load_config, override
from regcache_jax.files import results


def outcome(folder):
    """Results, plans (whose metadata tell the time), trials, and no half-written file or folder beside them."""
    arrays = {file.name: safetensors.numpy.load_file(file) for file in folder.glob("plans/*.safetensors")}
    return {
        "results": results.read(folder / "results.json"),
        **{name: {key: array.tolist() for key, array in plan.items()} for name, plan in arrays.items()},
        **{file.name: file.read_bytes() for file in folder.glob("plans/*.jsonl")},
        "half-written": [file for ending in ("tmp", "partial") for file in folder.rglob(f".*.{ending}")],
    }


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_with_the_same_results_plans_and_trials(tmp_path):
    config = load_config("demo")
    override(config, (f"--config.model={save_random(siglip(), tmp_path / 'model')}", *TINY))
    assert check_every_moment(lambda folder: pipeline.run(config, folder), outcome, tmp_path, each_file=True) > 30


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_message_and_nothing_half_written(tmp_path, monkeypatch, capsys):
    model = save_random(siglip(), tmp_path / "model")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100_000))
    with pytest.raises(SystemExit) as exit:
        main(["run", "--config", "demo", "--workdir", str(tmp_path / "run"), f"--config.model={model}", *TINY])
    assert exit.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("regcache: No space left on device (0.") and "0.1 MB free" in message
    assert list(tmp_path.glob("run/*")) == []


@pytest.mark.slow
def test_a_work_folder_that_may_not_be_written_gets_one_message(tmp_path, monkeypatch, capsys):
    """Tests run as root too, whom file modes do not stop; so the system's answer is given in its place."""

    def read_only(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
    monkeypatch.setattr(type(epath.Path(tmp_path)), "mkdir", read_only)
    with pytest.raises(SystemExit) as exit:
        main(["run", "--config", "demo", "--workdir", str(tmp_path / "run"), *TINY])
    assert exit.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("regcache: Read-only file system: ") and "run" in last
