"""`configs/` and `converters/` stand beside the package in a clone and inside it in a wheel: both are imported wherever Python starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = (
    "import regcache_jax, regcache_jax.configs, regcache_jax.converters, sys; from regcache_jax.configs import demo; "
    + ("print(*(m.__file__ for m in (regcache_jax, regcache_jax.configs, regcache_jax.converters, demo)), sep='\\n')")
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What git would give: the package, its two neighbours and what builds them."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("regcache_jax", "configs", "converters"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def installed(clone: Path, folder: Path, *how: str) -> Path:
    """A Python with the clone installed by pip, and what that depends on borrowed from the Python that runs this; returns it."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python3*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text(
        "\n".join(borrowed)
    )  # their own .pth files, an editable install among them, are not read
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "--no-build-isolation", *how, clone], capture_output=True, text=True, env=bare_environment()
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(clone / "build", ignore_errors=True)
    return python


def bare_environment() -> dict[str, str]:
    """Without what points Python elsewhere."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def found(python: Path, start: Path) -> list[Path]:
    """Where the modules are found by a Python that starts in a folder."""
    done = subprocess.run([python, "-c", CODE], cwd=start, env=bare_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Path(line).resolve() for line in done.stdout.split()]


def in_a_clone(folder: Path) -> list[Path]:
    return [
        folder / name
        for name in ("regcache_jax/__init__.py", "configs/__init__.py", "converters/__init__.py", "configs/demo.py")
    ]


def in_a_package(python: Path) -> list[Path]:
    (package,) = python.parents[1].glob("lib/python3*/site-packages/regcache_jax")
    names = ("__init__.py", "configs/__init__.py", "converters/__init__.py", "configs/demo.py")
    return [package / name for name in names]


@pytest.mark.slow
def test_of_an_editable_clone_they_are_its_own_wherever_python_starts(clone, tmp_path):
    python = installed(clone, tmp_path / "environment", "--editable")
    assert found(python, tmp_path) == found(python, clone) == in_a_clone(clone)


@pytest.mark.slow
def test_after_an_installation_they_are_the_packages_and_inside_a_clone_the_clones_own(clone, tmp_path):
    """pip builds a wheel and unpacks it. `python -c` puts the folder it starts in first: in a clone the package is the clone's, and so
    must its two neighbours be."""
    python = installed(clone, tmp_path / "environment")
    assert found(python, tmp_path) == in_a_package(python)
    assert found(python, clone) == in_a_clone(clone)
