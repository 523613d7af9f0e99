"""Damaged files for every reader: sound ones, built here, are changed at random, and whatever happens but a clear refusal is kept.

    make fuzz COUNT=1000          # or: python tests/fuzzing.py --count 1000 --target msgpack

Each change has a number (the seed of its random choices), so a finding can be made again. Findings lie in build/fuzz/."""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_checkpoints
import fuzz_data
import fuzz_own
from fuzz_targets import Make, Target

from regcache_jax.core.errors import LONGEST_MESSAGE, UserError

SECONDS = 10  # that a reader may take by the clock
SECONDS_OF_A_TRIAL = 40  # a tokenizer's, which may take twenty of a processor in a child; a busy machine lets it wait
MEMORY = 6 << 30  # bytes of address space, when this is run as a program
OWN = ("taken", "refused")
TARGETS = fuzz_checkpoints.TARGETS | fuzz_own.TARGETS | fuzz_data.TARGETS


@contextlib.contextmanager
def _in_time(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(target: Target, seed: int, keep: Path | None = None, seconds: int = SECONDS) -> str:
    """Changes one file and reads. Gives `taken`, `refused`, or what else happened; of that the input stays in `keep`."""
    rng = random.Random(seed)
    name = rng.choice(target.names())
    content = target.files[name]
    while content == target.files[name]:
        content = target.change(target.files[name], rng)
    with tempfile.TemporaryDirectory() as folder:
        for each, held in target.files.items():
            (Path(folder) / each).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / each).write_bytes(content if each == name else held)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / "current").write_bytes(content)  # there also if this process dies
        outcome = _read(target, Path(folder), seconds)
    if keep is not None and outcome not in OWN:
        (keep / f"{seed}-{name.replace('/', '_')}").write_bytes(content)
    return outcome


def _read(target: Target, folder: Path, seconds: int) -> str:
    try:
        with _in_time(seconds):
            found = target.read(folder)
    except UserError as error:
        message = str(error)
        return "refused" if message.isprintable() and len(message) <= LONGEST_MESSAGE else "refused in several lines"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "taken" if target.right is None or target.right(found) else "taken, but not what was written"


def run(target: Target, count: int, first: int = 0, keep: Path | None = None) -> collections.Counter[str]:
    """`count` changes (of readers that take long, their share); how often what happened."""
    seconds = SECONDS_OF_A_TRIAL if "tokenizer.json" in target.files else SECONDS
    seeds = range(first, first + max(1, round(count * target.share)))
    return collections.Counter(attempt(target, seed, keep, seconds) for seed in seeds)


def in_a_child(make: Make, count: int, first: int, keep: Path) -> tuple[dict[str, int], int]:
    """The same in a process of its own, which a reader may end; and the largest memory that it took, in MiB."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with tempfile.TemporaryDirectory() as folder:
            told = run(make(Path(folder)), count, first, keep)
        os.write(send, json.dumps(told).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        said = pipe.read()
    _, status, used = os.wait4(child, 0)
    told = json.loads(said) if said else {f"ended the process ({os.waitstatus_to_exitcode(status)})": 1}
    return told, used.ru_maxrss >> 10


def main() -> None:
    """The program behind `make fuzz`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--count", type=int, default=1000, help="changes for each kind of file; fewer where one takes long"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first change")
    parser.add_argument("--target", choices=TARGETS, help="only this kind of file")
    options = parser.parse_args()
    faulthandler.enable()
    keep = Path("build/fuzz")
    shutil.rmtree(keep, ignore_errors=True)
    total: collections.Counter[str] = collections.Counter()
    print(
        "| file | changes | taken | refused | anything else | most memory, MiB |\n|---|---|---|---|---|---|", flush=True
    )
    for kind, make in TARGETS.items():
        if options.target in (None, kind):
            told, memory = in_a_child(make, options.count, options.first, keep / kind)
            others = {what: number for what, number in told.items() if what not in OWN}
            count = sum(told.values())
            print(
                f"| {kind} | {count} | {told.get('taken', 0)} | {told.get('refused', 0)} | {others or 0} | {memory} |",
                flush=True,
            )
            total.update(
                changes=count, taken=told.get("taken", 0), refused=told.get("refused", 0), others=sum(others.values())
            )
    print(f"| all | {total['changes']} | {total['taken']} | {total['refused']} | {total['others']} | |")
    sys.exit(1 if total["others"] else 0)


if __name__ == "__main__":
    main()
