"""Several processes of several simulated devices each give what one process gives, to the last count."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("share_of_counts.py")


def run(processes: int, parallel: str, examples: int) -> list[dict]:
    """What every process printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(process), str(processes), str(port), parallel, str(examples)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for process in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), outputs
    # Gloo writes a line to the standard output as well
    return [json.loads(out[out.index('{"counts"') :]) for out, _ in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize(("processes", "examples"), [(2, 37), (4, 37), (4, 1)])  # 1: three processes have none
def test_every_process_has_the_counts_and_rows_of_a_single_one(processes, examples, parallel):
    (alone,) = run(1, parallel, examples)
    assert sum(alone["counts"]["seen"]) == examples and alone["rows"]["place"] == list(range(examples))
    assert run(processes, parallel, examples) == [alone] * processes
