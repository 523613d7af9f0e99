"""`regcache evaluate --distributed`: several processes of two simulated devices each give what one process gives, to the last
count, and a two-process evaluation survives being killed."""

from __future__ import annotations

import json
import os

import pytest
from killing import in_a_fresh_process

from regcache_jax.demo.bundled import bundled_model

SAME = """
import json, pathlib, sys
import regcache_jax.evaluation.tasks, regcache_jax.evaluation.rows, regcache_jax.cli.evaluate, grain
from together import run_together

folder, model = pathlib.Path(sys.argv[1]), sys.argv[2]

def metrics(processes, examples, *more):
    result = folder / "result.json"
    arguments = ["evaluate", model, "--dataset", "emoji", "--limit", str(examples), "--json", str(result), *more]
    run_together(arguments, processes, folder / "log")
    spoken = [(folder / f"log.{process}.out").read_text() for process in range(processes)]
    assert "acc1" in spoken[0].splitlines()[0] and not any(spoken[1:])  # the first speaks, and nothing is in between
    row = json.loads(result.read_text())
    result.unlink()
    return row["quantization"]["examples"], row["metrics"]

# a step takes 16 pictures whatever the number of processes: dynamic scales of a whole array are measured over a step
# 37 and 36 pictures are no whole number of steps or shares; of one picture three processes have none
CASES = {
    (37, "float"): [(1, "jit", "--workers", "1"), (2, "jit"), (4, "pmap")],
    (36, "tensor"): [(2, "pmap"), (4, "jit")],
    (1, "float"): [(4, "pmap")],
}
for (examples, scheme), others in CASES.items():
    more = ("--scheme", "w8a8", "--activations", scheme) if scheme != "float" else ()
    alone = metrics(1, examples, "--batch-size", "16", *more)
    for processes, parallel, *options in others:
        spread = ("--batch-size", str(16 // processes), "--parallel", parallel, *options)
        found = metrics(processes, examples, *spread, *more)
        print(json.dumps([examples, scheme, processes, parallel, alone, found]), flush=True)
"""


@pytest.mark.slow
def test_every_number_of_processes_gives_the_counts_of_a_single_one(tmp_path):
    lines = in_a_fresh_process(SAME, tmp_path, bundled_model()).splitlines()
    assert len(lines) == 6
    for line in map(json.loads, lines):
        (seen, alone), (also, found) = line[4:]
        assert seen == also == line[0]
        accuracies = {name: value for name, value in alone.items() if name not in ("cosine", "relative_error")}
        assert {name: found[name] for name in accuracies} == accuracies, line
        # float32 sums over other shapes: cosine and error of the features are equal but for their last digits
        assert found == pytest.approx(alone, rel=1e-5), line


KILLED = """
import json, pathlib, random, sys
import regcache_jax.evaluation.tasks, regcache_jax.evaluation.rows, regcache_jax.cli.evaluate, grain
from together import run_together

folder, model, kills = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def arguments(work):
    options = ["--batch-size", "4", "--keep-every", "8", "--limit", "60"]
    return ["evaluate", model, "--dataset", "emoji", *options, "--workdir", str(work / "kept"), "--json", str(work / "rows.json")]

def outcome(work):
    files = {str(file.relative_to(work)): file.read_bytes() for file in (work / "kept").rglob("*") if file.is_file()}
    return json.loads((work / "rows.json").read_text()), files

def start(name):
    (folder / name).mkdir()
    return folder / name

undisturbed = start("undisturbed")
_, events = run_together(arguments(undisturbed), 2, undisturbed / "log")
expected, moments, killed, turn = outcome(undisturbed), random.Random(0), 0, 0
assert len(expected[1]) == 9, sorted(expected[1])  # eight files of rows, and the class vectors
while killed < kills:
    turn += 1
    work, ended = start(f"turn{turn}"), False
    while not ended:
        kill_after = None if killed == kills else moments.randint(1, events)
        ended, _ = run_together(arguments(work), 2, work / "log", kill_after, moments.uniform(0.0, 0.1))
        killed += not ended
    assert outcome(work) == expected, f"after {killed} kills {work} differs"
print(f"{killed} kills, {turn} evaluations, {events} events")
"""


@pytest.mark.slow
def test_killed_at_random_moments_two_processes_end_with_the_same_rows_and_files(tmp_path):
    """KILLS=20 in the environment for as many as docs/evaluation.md speaks of."""
    kills = os.environ.get("KILLS", "2")
    said = in_a_fresh_process(KILLED, tmp_path, bundled_model(), kills)
    assert said.startswith(f"{kills} kills")
    print(said)
