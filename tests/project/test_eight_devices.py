"""What is told with two simulated devices holds with eight, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = (
    "core/test_recipes_scheme.py",
    "encoders/test_blocks.py",
    "evaluation/test_big_vision.py",
    "evaluation/test_evaluation.py",
    "models/test_checkpoints.py",
)


@pytest.mark.slow
def test_every_test_of_several_devices_holds_with_eight():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "devices", "-p", "no:cacheprovider"]
    environment = {**os.environ, "SIMULATED_DEVICES": "8"}
    done = subprocess.run(
        [*command, *(TESTS / file for file in FILES)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_every_file_with_such_tests_is_among_them():
    files = [
        path
        for path in TESTS.glob("*/test_*.py")
        if "pytest.mark.devices" in path.read_text() and path != Path(__file__)
    ]
    assert sorted(str(path.relative_to(TESTS)) for path in files) == sorted(FILES)
