"""What a release ships: sdist and wheel with the package's files and nothing else, version and changelog that agree, and the demo's eight
bits run from the unpacked wheel in an empty folder, to the results that the README promises."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

REPOSITORY = Path(__file__).parents[2]


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


PART = ("--config.schemes=w8a8", "--config.rows=plain,registers")
"""Of the demo's table; `benchmarks/demo.py` holds the whole to what README.md says."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(["-m", "build", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)], folder)
    return folder


def described():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def shipped():
    """What git knows of the package, by its place in the repository."""
    listed = ["git", "ls-files", "-z", "regcache_jax", "configs", "converters"]
    found = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return {name for name in found.stdout.split("\0") if name}


def installed(name):
    """Where a file of the repository lies in a wheel."""
    return name if name.startswith("regcache_jax/") else f"regcache_jax/{name}"


def test_version_and_changelog_speak_of_the_same_release():
    headings = re.findall(r"^## (\S+)(.*)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    (newest, when), *older = headings
    assert described()["version"] == (f"{newest}.dev0" if when == " (unreleased)" else newest)
    assert not any("unreleased" in when for _, when in older)
    numbers = [tuple(map(int, number.split("."))) for number, _ in headings]
    assert numbers == sorted(set(numbers), reverse=True)


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_its_licenses_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        checked = Metadata.from_email(archive.read(metadata), validate=True)
    about = metadata.removesuffix("METADATA")
    assert (str(checked.version), checked.name) == (described()["version"], "regcache-jax")
    assert {name for name in names if not name.startswith(about)} == {installed(name) for name in shipped()}
    assert {name.removeprefix(about) for name in names if name.startswith(about)} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt",
        *(f"licenses/{name}" for name in described()["license-files"]),
    }  # fmt: skip


@pytest.mark.slow
def test_an_sdist_holds_the_same_with_what_builds_it(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - made == shipped() | {"LICENSE", "README.md", "pyproject.toml"}


@pytest.mark.slow
def test_the_demo_runs_from_an_unpacked_wheel_in_an_empty_folder_and_recovers_what_it_promises(built, tmp_path):
    (wheel,) = built.glob("*.whl")
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
