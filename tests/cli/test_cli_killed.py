"""Commands that are killed and started again: they end as commands that were not."""

from __future__ import annotations

import json

import pytest
from commands import COMMANDS, arguments_of, has_ended, outcome, prepare
from killing import check_every_moment, in_a_fresh_process, watch


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model and pictures."""
    return prepare(tmp_path_factory.mktemp("places"))


@pytest.fixture
def work(regcache, places):
    """Runs a command in a folder of its own."""

    def run(command, folder):
        folder.mkdir(exist_ok=True)
        if has_ended(command, folder):
            return
        status, _, err = regcache(*arguments_of(command, folder, places))
        assert status == 0, err

    return run


@pytest.mark.slow
@pytest.mark.parametrize("command", ["search", "evaluate", "embed", "compare"])
def test_killed_at_any_moment_a_command_ends_with_the_same_files(work, tmp_path, command):
    long = command == "compare"  # its stages and logs are killed at each of their events in files/test_stopped.py
    assert check_every_moment(lambda folder: work(command, folder), outcome, tmp_path, each_file=long) > 5


KILLS = """
import json, pathlib, sys
import regcache_jax.cli.evaluate, regcache_jax.cli.registers, regcache_jax.cli.compare, regcache_jax.cli.run
import regcache_jax.evaluation.rows, regcache_jax.registers.search.search, regcache_jax.pipeline, regcache_jax.report.page
from commands import has_ended
from together import run_together

for folder, arguments, changes in json.loads(sys.argv[1]):
    log = pathlib.Path(folder) / "log"
    ended, _ = run_together(arguments, 1, log, kill_after=changes)
    assert not ended, arguments
    folder = pathlib.Path(folder)
    if not has_ended(folder.name, folder):
        run_together(arguments, 1, log)
"""


@pytest.mark.slow
def test_killed_by_the_system_half_way_every_command_ends_with_the_same_files(work, places, tmp_path):
    jobs = []
    for command in COMMANDS:
        folder = tmp_path / command
        folder.mkdir()
        half = (
            len(watch(lambda folder, command=command: work(command, folder), tmp_path / f"{command}-undisturbed")) // 2
        )
        jobs.append((str(folder), arguments_of(command, folder, places), half))
    in_a_fresh_process(KILLS, json.dumps(jobs))
    for command in COMMANDS:
        found, expected = outcome(tmp_path / command), outcome(tmp_path / f"{command}-undisturbed")
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
