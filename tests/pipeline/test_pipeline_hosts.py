"""`regcache run --distributed`: processes that share a work folder, killed and started again, end as one process does."""

from __future__ import annotations

import json

import pytest
import small
from killing import TINY, in_a_fresh_process

from regcache_jax.models.folder import save

ODD = ("--config.evaluation.limit=9", "--config.bank.limit=11")
"""Numbers of pictures that neither two processes nor their batches share evenly."""

SCRIPT = """
import json, pathlib, sys
import regcache_jax.pipeline, regcache_jax.report.page, regcache_jax.cli.run, grain
from together import run_together

folder = pathlib.Path(sys.argv[1])

def run(processes, name, kill_after=None, *more):
    arguments = ["run", "--config", "demo", "--workdir", str(folder / name / "work"), *sys.argv[2:], *more]
    (folder / name).mkdir(exist_ok=True)
    return run_together(arguments, processes, folder / name / "log", kill_after)

def outcome(name):
    work = folder / name / "work"
    left = [str(file) for file in work.rglob(".*") if file.name.endswith((".tmp", ".partial"))]
    return json.loads((work / "results.json").read_text()), left + [str(path) for path in work.glob("rows")]

_, events = run(1, "alone")
ended, _ = run(2, "killed", events // 2)
assert not ended and not (folder / "killed" / "work" / "results.json").exists()
run(2, "killed")
try:
    run(2, "fails", None, "--config.model=/nowhere.safetensors")
    failure = "none"
except RuntimeError as error:
    failure = str(error)
spoken = [(folder / "killed" / f"log.{process}.out").read_text() for process in range(2)]
print(json.dumps([outcome("alone"), outcome("killed"), spoken, failure]))
"""


@pytest.mark.slow
def test_two_processes_that_are_killed_and_started_again_end_with_the_rows_of_one(tmp_path):
    model = save(tmp_path / "model", small.encoder("siglip"))
    said = in_a_fresh_process(SCRIPT, tmp_path, f"--config.model={model}", *TINY, *ODD)
    (alone, left_alone), (together, left), spoken, failure = json.loads(said.splitlines()[-1])
    assert left_alone == left == [] and len(alone) == 4
    assert "top-1" in spoken[0] and spoken[1] == ""  # the first speaks for both
    # what stops the first is told to the others, and none of them waits
    assert "ended with [1, 1]" in failure and failure.count("/nowhere.safetensors") == 2 and "Traceback" not in failure
    assert "regcache: the first process failed: " in failure
    for own, one in zip(together, alone, strict=True):
        for row in (own, one):
            row["quantization"].pop("float_reference")  # metrics of another row
        assert own["quantization"] == one["quantization"]
        for name, value in one["metrics"].items():
            # counts are the same to the last one; features differ by the order of additions, as batches are cut otherwise
            assert own["metrics"][name] == pytest.approx(value, abs=0 if name.startswith(("acc", "mean")) else 1e-3)
