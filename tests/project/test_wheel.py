"""The wheel alone: built, unpacked, and the demo's eight bits run from it in an empty folder, to the results that the README promises."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


PART = ("--config.schemes=w8a8", "--config.rows=plain,registers")
"""Of the demo's table; `benchmarks/demo.py` holds the whole to what README.md says."""


@pytest.mark.slow
def test_the_demo_runs_from_an_unpacked_wheel_in_an_empty_folder_and_recovers_what_it_promises(tmp_path):
    run(["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(REPOSITORY)], tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    environment = {"PYTHONPATH": str(site), "XLA_FLAGS": ""}  # one device, as a user has it
    places = run(
        [
            "-c",
            "from regcache_jax import cli, configs, converters as c; print(cli.__file__, configs.__file__, c.__file__)",
        ],
        empty,
        **environment,
    ).split()
    assert all(Path(place).is_relative_to(site) for place in places)
    run(["-m", "regcache_jax.cli", "run", "--config", "demo", "--workdir", "here", *PART], empty, **environment)
    assert (empty / "here" / "report.html").stat().st_size > 10_000
    rows = json.loads((empty / "here" / "results.json").read_text())
    assert len(rows) == 2 + 2 and {row["quantization"]["examples"] for row in rows} == {816}
    assert len({(row["quantization"]["scheme"], row["quantization"]["plan"]) for row in rows}) == len(rows)
    demo = runpy.run_path(str(REPOSITORY / "benchmarks" / "demo.py"))
    assert demo["differences"](rows, (REPOSITORY / "README.md").read_text()) == []
    assert rows[1]["metrics"]["acc1"] >= 0.86  # in float, with registers
