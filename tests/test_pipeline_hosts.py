"""`regcache run --distributed`: processes that share a work folder, killed and started again, end as one process does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from randomized import save_random, siglip
from test_pipeline_killed import TINY

from regcache_jax import pipeline
from regcache_jax.cli.run import load_config, override

ODD = ("--config.evaluation.limit=9", "--config.bank.limit=11")
"""Numbers of pictures that neither two processes nor their batches share evenly."""


def start(folder, model, programs) -> list[subprocess.Popen]:
    """Two processes of two simulated devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "regcache_jax.cli",
        "run",
        "--distributed",
        "--config",
        "demo",
        "--workdir",
        str(folder),
    ]
    environment = {
        **os.environ, "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COMPILATION_CACHE_DIR": str(programs), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [*command, f"--config.model={model}", *TINY, *ODD], text=True,
            env={**environment, "JAX_PROCESS_ID": str(process)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for process in range(2)
    ]  # fmt: skip


@pytest.mark.slow
def test_two_processes_that_are_killed_and_started_again_end_with_the_rows_of_one(tmp_path):
    model, shared = save_random(siglip(), tmp_path / "model"), tmp_path / "shared"
    processes = start(shared, model, tmp_path / "programs")
    try:
        for line in processes[0].stderr:
            if line.startswith("evaluate_w8a8_plain ..."):
                break
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert (shared / "stages" / "evaluate_float_registers.json").exists() and not (shared / "results.json").exists()
        processes = start(shared, model, tmp_path / "programs")
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "evaluate_float_registers: unchanged, kept" in outputs[0][1] and "unchanged" not in outputs[1][1]
    assert "top-1" in outputs[0][0] and "top-1" not in outputs[1][0]  # the first speaks for both

    config = load_config("demo")
    override(config, (f"--config.model={model}", *TINY, *ODD))
    alone = pipeline.run(config, tmp_path / "alone")
    rows = json.loads((shared / "results.json").read_text())
    assert len(rows) == len(alone) == 4
    for own, one in zip(rows, alone, strict=True):
        assert own["quantization"] == {**one["quantization"], "float_reference": own["quantization"]["float_reference"]}
        for name, value in one["metrics"].items():
            # counts are the same to the last one; features differ by the order of additions, as batches are cut otherwise
            assert own["metrics"][name] == pytest.approx(value, abs=0 if name.startswith(("acc", "mean")) else 1e-3)
    assert not [file for file in shared.rglob(".*")] and not (shared / "rows").exists()
