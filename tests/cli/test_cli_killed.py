"""Commands that are killed and started again: they end as commands that were not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small
from killing import TINY, check_every_moment, in_a_fresh_process, watch
from PIL import Image
from safetensors.numpy import load_file

from regcache_jax.models.folder import save

DATA = ("--dataset", "dummy", "--limit", "8", "--batch-size", "4")
KNN = (
    "--task", "knn", "--neighbours", "3", "--split", "train", "--limit", "20", "--bank-limit", "20", "--batch-size", "4",
    "--keep-every", "8",
)  # fmt: skip
COMMANDS = {
    "search": ("search", "{model}", *DATA, "--max-trials", "3", "--out", "{folder}/plan.safetensors", "--table", "{folder}/trials.jsonl"),
    "evaluate": ("evaluate", "{model}", "--dataset", "emoji", *KNN, "--workdir", "{folder}/kept", "--json", "{folder}/rows.json"),
    "embed": ("embed", "{model}", "--images", "{pictures}", "--out", "{folder}/features.npz"),
    "compare": (
        "compare", "{model}", *DATA, "--bits", "8", "--methods", "rtn,token", "--calibration", "8", "--no-registers",
        "--out", "{folder}/out",
    ),
    "run": ("run", "--config", "demo", "--workdir", "{folder}/work", "--config.model={model}", *TINY),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model and pictures."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "pictures").mkdir()
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(noise).save(folder / "pictures" / f"{number}.png")
    return {"model": str(save(folder / "model", small.encoder("siglip"))), "pictures": str(folder / "pictures")}


TELL_THE_TIME = ("commit_success.txt", "_CHECKPOINT_METADATA", "report.html")
"""So do the metadata of plans."""
OF_ONE_RUN = ("seconds", "compilations", "sha256", "sealed_files", "models/w8a8")
"""So do seconds, what was compiled by this process already, and hashes of files that tell the time; the files themselves are compared."""


def outcome(folder):
    """All that was made, but for what tells the time: tables, plans, trials, features, models, records of stages."""
    readers = {".json": lambda file: timeless(json.loads(file.read_text())), ".safetensors": arrays}
    files = [
        file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock" and "log." not in file.name
    ]
    return {
        str(file.relative_to(folder)): readers.get(file.suffix, Path.read_bytes)(file)
        for file in files
        if file.name not in TELL_THE_TIME
    }


def arrays(file):
    return {name: array.tolist() for name, array in load_file(file).items()}


def timeless(tree):
    if isinstance(tree, dict):
        return {name: timeless(below) for name, below in tree.items() if name not in OF_ONE_RUN}
    return [timeless(below) for below in tree] if isinstance(tree, list) else tree


@pytest.fixture
def work(regcache, places):
    """Runs a command in a folder of its own."""

    def run(command, folder):
        folder.mkdir(exist_ok=True)
        arguments = [argument.format(folder=folder, **places) for argument in COMMANDS[command]]
        for number, argument in enumerate(arguments):
            if argument == "--out" and Path(arguments[number + 1]).is_file():
                return  # it had ended: nobody starts it again, and it would refuse
        status, _, err = regcache(*arguments)
        assert status == 0, err

    return run


@pytest.mark.slow
@pytest.mark.parametrize("command", ["search", "evaluate", "embed", "compare"])
def test_killed_at_any_moment_a_command_ends_with_the_same_files(work, tmp_path, command):
    assert check_every_moment(lambda folder: work(command, folder), outcome, tmp_path) > 5


KILLS = """
import json, pathlib, sys
import regcache_jax.cli.evaluate, regcache_jax.cli.registers, regcache_jax.cli.compare, regcache_jax.cli.run
import regcache_jax.evaluation.rows, regcache_jax.registers.search.search, regcache_jax.pipeline, regcache_jax.report.page
from together import run_together

for folder, arguments, changes in json.loads(sys.argv[1]):
    log = pathlib.Path(folder) / "log"
    ended, _ = run_together(arguments, 1, log, kill_after=changes)
    assert not ended, arguments
    out = pathlib.Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
    if out is None or not out.is_file():  # its only file was there already: nobody starts it again, and it would refuse
        run_together(arguments, 1, log)
"""


@pytest.mark.slow
def test_killed_by_the_system_half_way_every_command_ends_with_the_same_files(work, places, tmp_path):
    jobs = []
    for command, arguments in COMMANDS.items():
        folder = tmp_path / command
        folder.mkdir()
        half = (
            len(watch(lambda folder, command=command: work(command, folder), tmp_path / f"{command}-undisturbed")) // 2
        )
        jobs.append((str(folder), [argument.format(folder=folder, **places) for argument in arguments], half))
    in_a_fresh_process(KILLS, json.dumps(jobs))
    for command in COMMANDS:
        found, expected = outcome(tmp_path / command), outcome(tmp_path / f"{command}-undisturbed")
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
