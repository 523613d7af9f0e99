"""The wheel alone: built, unpacked into an empty folder, and the demo run from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


@pytest.mark.slow
def test_the_demo_runs_from_an_unpacked_wheel_in_an_empty_folder(tmp_path):
    run(["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(REPOSITORY)], tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    environment = {"PYTHONPATH": str(site)}
    places = run(
        [
            "-c",
            "from regcache_jax import cli, configs, converters as c; print(cli.__file__, configs.__file__, c.__file__)",
        ],
        empty,
        **environment,
    ).split()
    assert all(Path(place).is_relative_to(site) for place in places)
    run(["-m", "regcache_jax.cli", "demo", "--out", "here"], empty, **environment)
    rows = json.loads((empty / "here" / "results.json").read_text())
    assert {row["quantization"]["scheme"] for row in rows} == {"float", "w8a8", "w6a6", "w4a4"}
    assert (empty / "here" / "report.html").stat().st_size > 10_000
