"""scripts/tpu.sh: what it would run is what it runs, on all workers, with every argument as it was given."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "tpu.sh"
GCLOUD = """#!/usr/bin/env bash
# Stands in for gcloud: what is to run on two workers runs here, in a home folder for each.
case "$4 $5" in "ssh "*) ;; *) echo "gcloud $*"; exit;; esac
for argument in "$@"; do case $argument in
  --worker=*) workers=${argument#--worker=};; --command=*) command=${argument#--command=};;
esac; done
if [ "$workers" = all ]; then workers='0 1'; fi
for worker in $workers; do (cd "$HOMES/$worker" && WORKER=$worker bash -c "$command") || exit 1; done
"""
PROGRAM = '#!/usr/bin/env bash\nprintf "%s|" "$WORKER" "${TFDS_DATA_DIR:-}" "$@"; echo\n'
RUN = (
    "run",
    "--config",
    "configs/demo.py",
    "--workdir",
    "gs://bucket/a b",
    "--config.model=it's $HOME",
    "--config.rows=a,b",
)


@pytest.fixture
def environment(tmp_path):
    """Two workers with a regcache that says its arguments, and a gcloud that reaches them."""
    for worker in ("0", "1"):
        program = tmp_path / "homes" / worker / "regcache_jax" / ".venv" / "bin" / "regcache"
        program.parent.mkdir(parents=True)
        program.write_text(PROGRAM)
        program.chmod(0o755)
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    return {
        "PATH": f"{gcloud.parent}:{os.environ['PATH']}", "HOMES": str(tmp_path / "homes"), "TMPDIR": str(tmp_path),
        "TFDS_DATA_DIR": "gs://bucket/my data",
    }  # fmt: skip


def script(environment, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def test_a_run_reaches_every_worker_with_its_arguments_as_they_were_given(environment):
    done = script(environment, *RUN)
    words = "|".join(("run", "--distributed", *RUN[1:]))
    assert done.stdout.splitlines() == [f"{worker}|gs://bucket/my data|{words}|" for worker in (0, 1)], done.stderr
    assert script(environment, "regcache", "models").stdout == "0|gs://bucket/my data|models|\n"


@pytest.mark.parametrize(
    "command", [("create",), ("setup",), ("devices",), RUN, ("regcache", "models"), ("stop",), ("delete",)]
)
def test_a_dry_run_prints_what_a_shell_would_read_back_and_runs_nothing(environment, command, tmp_path):
    done = script({**environment, "PATH": os.environ["PATH"]}, "--dry-run", *command)  # there is no gcloud at all
    assert done.returncode == 0 and not done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert all(line[0] in ("gcloud", "git") for line in lines)
    assert all("--zone=us-west4-a" in line for line in lines if line[0] == "gcloud")
    assert not list(tmp_path.glob("*.tar.gz"))
    if command == RUN:  # the printed line does the same as the script itself
        printed = subprocess.run(["bash", "-c", done.stdout], env=environment, capture_output=True, text=True)
        assert printed.stdout == script(environment, *RUN).stdout


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("runn",), ("run",), ("--dry-run", "regcache")])
def test_wrong_use_prints_the_commands_and_exits_with_status_2(environment, arguments):
    done = script(environment, *arguments)
    assert done.returncode == 2 and "scripts/tpu.sh [--dry-run] create" in done.stderr and not done.stdout


def test_a_worker_that_fails_fails_the_run(environment):
    program = Path(environment["HOMES"]) / "1" / "regcache_jax" / ".venv" / "bin" / "regcache"
    program.write_text("#!/usr/bin/env bash\nexit 3\n")
    assert script(environment, *RUN).returncode != 0
