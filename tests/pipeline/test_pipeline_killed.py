"""A run of the pipeline that is killed, that finds its disk full, or that may not write: nothing lost, one message."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import types

import pytest
from etils import epath
from killing import in_a_fresh_process
from randomized import save_random, siglip

from regcache_jax.cli.main import main

TINY = (
    "--config.task=knn", "--config.neighbours=3", "--config.schemes=w8a8", "--config.rows=plain,registers",
    "--config.reference.limit=6", "--config.calibration.limit=6", "--config.evaluation.limit=8", "--config.bank.limit=8",
    "--config.search.max_trials=4", "--config.search.chunk=6", "--config.batch_size=8",
)  # fmt: skip
"""The demo's config for a small encoder without a tokenizer."""

SCRIPT = """
import json, pathlib, sys, killing
import safetensors.numpy
from regcache_jax import converters, pipeline
from regcache_jax.cli.run import load_config, override
from regcache_jax.report import page

config = load_config("demo")
override(config, tuple(sys.argv[2:]))

def run(folder):
    pipeline.run(config, folder)

def outcome(folder):
    # Results, plans (whose metadata tell the time), trials, and no half-written file or folder beside them.
    plans = [safetensors.numpy.load_file(file) for file in sorted(folder.glob("plans/*.safetensors"))]
    return (
        json.loads((folder / "results.json").read_text()),
        [{name: array.tolist() for name, array in plan.items()} for plan in plans],
        [file.read_bytes() for file in sorted(folder.glob("plans/*.jsonl"))],
        sorted(str(file.relative_to(folder)) for file in folder.rglob(".*")),
    )

killing.kill_and_compare(run, outcome, pathlib.Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_at_twenty_random_moments_a_run_ends_with_the_same_results_plans_and_trials(tmp_path):
    model = save_random(siglip(), tmp_path / "model")
    (tmp_path / "runs").mkdir()
    assert in_a_fresh_process(SCRIPT, tmp_path / "runs", f"--config.model={model}", *TINY).startswith("20 kills")


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_message_and_nothing_half_written(tmp_path, monkeypatch, capsys):
    model = save_random(siglip(), tmp_path / "model")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100_000))
    with pytest.raises(SystemExit) as exit:
        main(["run", "--config", "demo", "--workdir", str(tmp_path / "run"), f"--config.model={model}", *TINY])
    assert exit.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("regcache: No space left on device (0.") and "0.1 MB free" in message
    assert list((tmp_path / "run").iterdir()) == []


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
