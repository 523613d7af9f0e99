"""Real kills, two runs at once, and full disks: each of the commands ends with the bytes of an undisturbed run, and leaves nothing else.

    make campaign          # or: python tests/campaign.py --kills 100 --pairs 20 --full 20

Every run is a process, forked from this one, which has imported everything and never starts JAX. A full disk is a tmpfs, which only root
may mount."""

from __future__ import annotations

import argparse
import collections
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("build/programs").absolute()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from commands import Places, arguments_of, has_ended, outcome, prepare

from regcache_jax.cli.main import main as regcache

for name in (
    "cli.compare",
    "cli.convert",
    "cli.evaluate",
    "cli.quantize",
    "cli.run",
    "converters",
    "pipeline",
    "report.page",
):
    importlib.import_module(
        f"regcache_jax.{name}"
    )  # a command imports what it needs when it runs; here that is done once for all

COMMANDS = ("convert", "embed", "partitions", "quantize", "compare", "run")
TURNS = ("run", *("compare", "convert", "quantize", "embed", "convert", "quantize", "partitions") * 3)
"""Which command has its turn: one in 22 is a `run`, which takes as long as ten others."""


PAGE = 4096
"""Bytes of the smallest disk; what needs less meets one that is full already."""


def start(command: str, folder: Path, places: Places) -> int:
    """Starts a command in a process of its own, whose words go into a file beside the folder; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setpgid(0, 0)  # with its own children
        log = os.open(f"{folder}.{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        regcache(arguments_of(command, folder, places))
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def wait(child: int) -> int:
    """The status of a process that has ended; negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def said(folder: Path, child: int) -> list[str]:
    """What a process has said."""
    return Path(f"{folder}.{child}.log").read_text(errors="replace").splitlines()


class Campaign:
    """The commands' undisturbed runs, and what was found to differ from them."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.rng = root, random.Random(seed)
        self.places: Places = {}
        self.wanted: dict[str, dict] = {}
        self.seconds: dict[str, float] = {}
        self.size: dict[str, int] = {}
        self.faults: list[str] = []
        self.killed = 0

    def undisturbed(self) -> None:
        """Runs every command once, in the order of their length: the programs of a short one are compiled when a long one begins."""
        (self.root / "places").mkdir()
        child = os.fork()
        if child == 0:
            prepare(self.root / "places")
            os._exit(0)
        assert wait(child) == 0
        self.places = {name: str(self.root / "places" / name) for name in ("model", "source", "pictures")}
        for command in COMMANDS:
            folder = self.folder(f"{command}-undisturbed")
            began = time.monotonic()
            child = start(command, folder, self.places)
            assert wait(child) == 0, said(folder, child)
            self.seconds[command] = time.monotonic() - began
            self.wanted[command] = outcome(folder)
            self.size[command] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            print(f"{command}: {self.seconds[command]:.1f} s, {self.size[command] / 1e6:.2f} MB", flush=True)

    def check(self, command: str, folder: Path, what: str) -> None:
        """Notes what differs from the undisturbed run, and what is left over."""
        found, wanted = outcome(folder), self.wanted[command]
        different = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        hidden = [
            str(path) for path in folder.rglob(".*") if path.suffix != ".lock" and not path.name.startswith(".zarray")
        ]
        if different or hidden:
            self.faults.append(f"{what}: {command} differs in {different}, left {hidden}")
            print(self.faults[-1], flush=True)

    def finish(self, command: str, folder: Path, what: str) -> None:
        """Starts the command once more, where it has not ended, and holds what there is against the undisturbed run."""
        if not has_ended(command, folder):
            child = start(command, folder, self.places)
            if status := wait(child):
                self.faults.append(f"{what}: {command} ends with {status}: {said(folder, child)[-3:]}")
                print(self.faults[-1], flush=True)
                return
        self.check(command, folder, what)
        shutil.rmtree(folder)

    def folder(self, name: str) -> Path:
        """A new folder."""
        (self.root / name).mkdir()
        return self.root / name

    def kill(self, number: int) -> str:
        """One kill at a random moment; what happened."""
        command = TURNS[number % len(TURNS)]
        folder = self.folder(f"kill{number}")
        child = start(command, folder, self.places)
        time.sleep(self.rng.uniform(0.2, 1.0) * self.seconds[command])
        os.kill(child, signal.SIGKILL)
        killed = wait(child) == -signal.SIGKILL
        self.killed += killed
        self.seconds[command] *= 1.0 if killed else 0.9  # programs that are compiled by now take less
        self.finish(command, folder, f"kill {number}")
        return f"{command}: {'killed' if killed else 'had ended'}"

    def kills(self, count: int) -> Iterator[str]:
        """Kills until there are so many that came before the end."""
        number = 0
        while self.killed < count:
            yield self.kill(number)
            number += 1

    def pair(self, number: int) -> str:
        """Two runs at once in one folder: each ends whole, or says in one line who holds the place."""
        command = TURNS[number % len(TURNS)]
        folder = self.folder(f"pair{number}")
        first = start(command, folder, self.places)
        time.sleep(self.rng.uniform(0.0, 0.3) * self.seconds[command])
        second = start(command, folder, self.places)
        statuses = []
        for child in (first, second):
            statuses.append(wait(child))
            lines = [line for line in said(folder, child) if line.startswith("regcache:")]
            clean = statuses[-1] == 0 or (
                statuses[-1] == 1 and len(lines) == 1 and re.search("held|in use|exists|holds", lines[0])
            )
            if not clean:
                self.faults.append(f"pair {number}: {command} ends with {statuses[-1]}: {said(folder, child)[-3:]}")
                print(self.faults[-1], flush=True)
        self.finish(command, folder, f"pair {number}")
        return f"{command}: {'both ended' if statuses == [0, 0] else 'one was told' if 0 in statuses else 'both were told'}"

    def full(self, number: int, count: int) -> str:
        """One run on a disk that fills at one of `count` moments, and one more when there is room again."""
        command = TURNS[number % len(TURNS)]
        folder = self.folder(f"full{number}")
        pages = int(self.size[command] * 1.3 * (number + 0.5) / count) // PAGE
        mount(folder, f"size={max(1, pages) * PAGE}")
        filler = folder.parent / f"full{number}.filler" if pages else folder / "filler"
        filler.write_bytes(bytes(PAGE))
        try:
            child = start(command, folder, self.places)
            status = wait(child)
            lines = [line for line in said(folder, child) if line.startswith("regcache:")]
            if status not in (0, 1) or len(lines) != status or any("Traceback" in line for line in said(folder, child)):
                self.faults.append(f"full disk {number}: {command} ends with {status}: {said(folder, child)[-3:]}")
                print(self.faults[-1], flush=True)
            mount(folder, "remount,size=64M")
            filler.unlink()
            if not has_ended(command, folder):
                child = start(command, folder, self.places)
                if again := wait(child):
                    self.faults.append(
                        f"full disk {number}: {command} then ends with {again}: {said(folder, child)[-3:]}"
                    )
                    print(self.faults[-1], flush=True)
            self.check(command, folder, f"full disk {number}")
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return f"{command}: {'refused' if status else 'had room'}"


def mount(folder: Path, options: str) -> None:
    """A disk of a given size."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def tell(what: str, happenings: Iterator[str]) -> None:
    """What happens, and in the end how often, a line a command."""
    happened = []
    for number, each in enumerate(happenings):
        print(f"{what} {number}: {each}", flush=True)
        happened.append(each)
    for each, count in sorted(collections.Counter(happened).items()):
        print(f"{what}: {each}: {count}", flush=True)


def main() -> None:
    """The program behind `make campaign`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--full", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        campaign = Campaign(Path(root), options.seed)
        campaign.undisturbed()
        tell("full disk", (campaign.full(number, options.full) for number in range(options.full)))
        tell("pair", (campaign.pair(number) for number in range(options.pairs)))
        tell("kill", campaign.kills(options.kills))
    print(f"{len(campaign.faults)} faults")
    sys.exit(1 if campaign.faults else 0)


if __name__ == "__main__":
    main()
