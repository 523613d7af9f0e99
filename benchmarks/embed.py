"""Many pictures into one set by several processes, of which two are killed and one comes late: every row once, hashes verified, and how
much memory each process held.

    nice -n 19 python benchmarks/embed.py [--pictures 20000] [--processes 4] [--partition 1000] [--again] [--out DIR]

The pictures are `dummy`, the encoder is a small one. `--again`: one process that nobody disturbs makes the set once more, and all files
must be the same.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

import regcache_jax.cli.embed  # all is imported before processes are forked, and no device started
import regcache_jax.embedding.embed
import regcache_jax.models.folder
from regcache_jax.cli.main import main as command
from regcache_jax.core.spec import HALF, BlockSpec, EncoderSpec, ImageSpec, Preprocessing
from regcache_jax.embedding.check import check_set

SPEC = EncoderSpec(
    "small",
    "clip",
    ImageSpec(16, 8, BlockSpec(16, 1, 2, 32, "gelu", 1e-6), class_token=True, pooling="class"),
    Preprocessing(16, "squash", "bilinear", 16, HALF, HALF),
)
SAMPLE = 0.1
"""Seconds between two looks at the memory of the processes."""


def started(arguments: list[str], log: Path) -> int:
    """A process of its own that runs `regcache` with some arguments; its number."""
    process = os.fork()
    if process == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            command(arguments)
        except SystemExit as ended:
            sys.stdout.flush()
            os._exit(int(ended.code or 0))
        os._exit(1)
    return process


def save_model(folder: Path) -> None:
    """A model folder, made by another process, as this one may start no device."""
    process = os.fork()
    if process == 0:
        import jax

        from regcache_jax.encoders.encoder import Encoder, init_params

        regcache_jax.models.folder.save(folder, Encoder(init_params(SPEC, jax.random.key(0)), spec=SPEC))
        os._exit(0)
    os.waitpid(process, 0)


def resident(process: int) -> float:
    """MiB of a process's own memory now; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Fleet:
    """Processes that work on one set, and the memory that each has held, by the share of the set that was done."""

    def __init__(self, arguments: list[str], folder: Path, partitions: int) -> None:
        self._arguments, self._folder, self._partitions = arguments, folder, partitions
        self.running: list[int] = []
        self.memory: dict[int, list[float]] = {}

    def start(self) -> None:
        """One process more."""
        process = started(self._arguments, self._folder.parent / "log")
        self.running.append(process)
        self.memory[process] = []

    def kill(self) -> None:
        """One process less, without a warning. Raises RuntimeError where all have ended."""
        if not self.running:
            raise RuntimeError(f"at {self.done():.0%} nobody is left to be killed: give more --pictures")
        process = self.running.pop(0)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        print(f"killed {process} at {self.done():.0%}", flush=True)

    def done(self) -> float:
        """The share of partitions that are there."""
        there = self._folder / "partitions"
        return len(list(there.glob("partition_*.json"))) / self._partitions if there.is_dir() else 0.0

    def until(self, share: float) -> None:
        """Waits until so much is done, or all processes have ended; raises RuntimeError where one failed."""
        while self.running and self.done() < share:
            time.sleep(SAMPLE)
            for process in list(self.running):
                self.memory[process].append(resident(process))
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    self.running.remove(process)
                    if status:
                        raise RuntimeError((self._folder.parent / "log").read_text()[-2000:])


def embed_disturbed(fleet: Fleet, processes: int) -> None:
    """`processes` begin; at a fifth one is killed, at two fifths another, at half one is added."""
    for _ in range(processes):
        fleet.start()
    fleet.until(0.2)
    fleet.kill()
    fleet.until(0.4)
    fleet.kill()
    fleet.until(0.5)
    fleet.start()
    fleet.until(2.0)


def check_rows(folder: Path, pictures: int) -> None:
    """Every picture has one row, in order, and every file is as it was written."""
    checked = check_set(folder)
    assert checked.rows == pictures and checked.unreadable == 0
    expected = 0
    for file in sorted((folder / "metadata").iterdir()):
        for name in pq.read_table(file, columns=["image_path"]).column(0).to_pylist():
            assert name == f"dummy-{expected}", (file, name, expected)
            expected += 1
    assert expected == pictures


def main() -> None:
    """Prints how long it took, what was killed, and memory at the quarters of each process's life."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--partition", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.out or Path(temporary)
        save_model(root / "model")
        arguments = [
            "embed", str(root / "model"), "--dataset", "dummy", "--limit", str(given.pictures), "--batch-size", str(given.batch_size),
            "--partition", str(given.partition), "--dtype", "float16", "--out",
        ]  # fmt: skip
        began = time.monotonic()
        fleet = Fleet([*arguments, str(root / "set")], root / "set", -(-given.pictures // given.partition))
        embed_disturbed(fleet, given.processes)
        seconds = time.monotonic() - began
        check_rows(root / "set", given.pictures)
        print(
            f"{given.pictures:,} pictures, each one row, hashes verified: {seconds:.0f} s, {given.pictures / seconds:,.0f}/s"
        )
        print("process\tMiB at each tenth of its life")
        for process, memory in fleet.memory.items():
            tenths = [memory[round(tenth * (len(memory) - 1) / 10)] for tenth in range(1, 11)] if memory else []
            print(f"{process}\t{' '.join(f'{each:.0f}' for each in tenths)}")
        if given.again:
            alone = Fleet([*arguments, str(root / "alone")], root / "alone", 1)
            alone.start()
            alone.until(float("inf"))
            files = [file.relative_to(root / "alone") for file in (root / "alone").rglob("*") if file.is_file()]
            different = [
                str(file)
                for file in files
                if (root / "alone" / file).read_bytes() != (root / "set" / file).read_bytes()
            ]
            assert not different and len(files) == sum(file.is_file() for file in (root / "set").rglob("*")), different
            print(f"the {len(files)} files of an undisturbed process are the same")


if __name__ == "__main__":
    main()
