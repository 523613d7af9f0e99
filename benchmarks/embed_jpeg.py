"""JPEG files to features, end to end: `regcache embed` in float32 and int8 beside a plain PyTorch DataLoader with transformers.

    python benchmarks/embed_jpeg.py [--count 20000] [--width 384] [--cores 2] [--batch-size 32]

Drawn pictures (500 x 375, smooth, with noise) lie as JPEG bytes in webdataset shards. One random CLIP ViT/32 is the checkpoint of all
three, each a process of its own on the same cores. They run in turns of ten seconds, so that what else the machine does falls on all alike.
Prints how long each process ran, all of it (imports, loading and compiling too), its processor seconds (which others on the machine hardly
change), pictures a second, and how near the features are to PyTorch's.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import signal
import sys
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SHARD = 500
"""Pictures a shard."""
TURN = 10.0
"""Seconds that one process runs while the others stand still."""


@functools.cache
def noise() -> np.ndarray:
    """As a camera has it; drawn once, as drawing takes twice as long as all else."""
    return np.random.default_rng(0).normal(0, 6, (375, 500, 3)).astype(np.int16)


def jpeg(index: int) -> bytes:
    """A picture of its own: a few large spots of colour, under the noise moved by so much."""
    rng = np.random.default_rng(index)
    spots = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    noisy = np.asarray(spots, np.int16) + np.roll(noise(), rng.integers(0, 375, 2), (0, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_shards(folder: Path, count: int) -> None:
    """`00000.tar` and so on."""
    folder.mkdir(parents=True)
    for first in range(0, count, SHARD):
        with tarfile.open(folder / f"{first // SHARD:05d}.tar", "w") as shard:
            for index in range(first, min(first + SHARD, count)):
                content = jpeg(index)
                member = tarfile.TarInfo(f"{index:08d}.jpg")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def make_models(root: Path, width: int) -> None:
    """One checkpoint as the hub has it, and its two model folders: float32, and int8 (scales from 32 of the pictures)."""
    from zero_shot_torch import write_checkpoint

    import regcache_jax as rc

    write_checkpoint(root / "checkpoint", width)
    rc.convert(str(root / "checkpoint"), root / "float32")
    model = rc.load(root / "float32")
    pictures = np.stack([model.preprocess(jpeg(index)) for index in range(32)])
    rc.save(root / "int8", rc.quantize(model.encoder, pictures, "w8a8"))


def by_torch(root: Path, batch_size: int, cores: int) -> None:
    """What the process beside does: shards through a DataLoader, with a worker a core, into one .npy."""
    import torch
    import transformers

    torch.set_num_threads(cores)
    shards = sorted((root / "shards").glob("*.tar"))
    processor = transformers.CLIPImageProcessorPil()
    network = transformers.CLIPVisionModelWithProjection.from_pretrained(root / "checkpoint").eval()

    class Pictures(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            worker = torch.utils.data.get_worker_info()
            for shard in shards[worker.id :: worker.num_workers]:
                with tarfile.open(shard) as archive:
                    for member in archive:
                        picture = Image.open(archive.extractfile(member))
                        yield member.name, processor(picture, return_tensors="pt").pixel_values[0]

    found: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for names, pixels in torch.utils.data.DataLoader(Pictures(), batch_size, num_workers=min(cores, len(shards))):
            features = torch.nn.functional.normalize(network(pixels).image_embeds, dim=-1).numpy()
            found.update(zip(names, features, strict=True))
    np.save(root / "torch.npy", np.stack([found[name] for name in sorted(found)]))


def in_turns(commands: dict[str, list[str]], cores: int) -> dict[str, tuple[float, float]]:
    """How long each process of Python runs on so many cores, by the clock while it is its turn, and of the processor."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    taken: dict[str, tuple[float, float]] = {}
    seconds = dict.fromkeys(commands, 0.0)
    started: dict[str, int] = {}
    waiting = deque(commands)
    try:
        while waiting:
            kind = waiting[0]
            began = time.perf_counter()
            if kind in started:
                os.killpg(started[kind], signal.SIGCONT)
            else:  # a group of its own, with the workers that it starts
                started[kind] = os.posix_spawn(
                    sys.executable, [sys.executable, *commands[kind]], os.environ, setpgroup=0
                )
            ended = 0
            while not ended and time.perf_counter() - began < TURN:
                time.sleep(0.02)
                ended, status, used = os.wait4(started[kind], os.WNOHANG)
            seconds[kind] += time.perf_counter() - began
            waiting.popleft()
            if not ended:
                os.killpg(started[kind], signal.SIGSTOP)
                waiting.append(kind)
            elif status:
                raise SystemExit(f"{kind} failed: {' '.join(commands[kind])}")
            else:
                taken[kind] = seconds[kind], used.ru_utime + used.ru_stime
    finally:
        for kind in waiting:
            if kind in started:
                os.killpg(started[kind], signal.SIGKILL)
    return {kind: taken[kind] for kind in commands}


def rows(folder: Path) -> np.ndarray:
    """The features of a set."""
    return np.concatenate([np.load(file) for file in sorted((folder / "img_emb").iterdir())])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=384, help="of the encoder: 384 is ViT-S/32's, 768 ViT-B/32's")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--torch-in", type=Path, help=argparse.SUPPRESS)  # of the process beside
    given = parser.parse_args()
    if given.torch_in is not None:
        by_torch(given.torch_in, given.batch_size, given.cores)
        return
    batch = ["--batch-size", str(given.batch_size)]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_shards(root / "shards", given.count)
        make_models(root, given.width)
        commands = {"PyTorch": [__file__, "--torch-in", temporary, *batch, "--cores", str(given.cores)]}
        for kind in ("float32", "int8"):
            command = ["-m", "regcache_jax.cli", "embed", str(root / kind), "--images", str(root / "shards" / "*.tar")]
            commands[kind] = [*command, *batch, "--out", str(root / f"set-{kind}")]
        taken = in_turns(commands, given.cores)
        theirs = np.load(root / "torch.npy")
        found = {"PyTorch": theirs, **{kind: rows(root / f"set-{kind}") for kind in ("float32", "int8")}}
    print(f"{given.count:,} pictures, width {given.width}, {given.cores} cores")
    print("\tseconds\tpictures/s\tas fast as PyTorch\tprocessor seconds\tof PyTorch's\tleast cosine to it")
    theirs_alone = taken["PyTorch"]
    for kind, (seconds, processor) in taken.items():
        cosine = (found[kind] * theirs).sum(axis=1).min()
        speed, ratio, share = given.count / seconds, theirs_alone[0] / seconds, processor / theirs_alone[1]
        print(f"{kind}\t{seconds:.1f}\t{speed:.1f}\t{ratio:.2f}\t{processor:.1f}\t{share:.2f}\t{cosine:.6f}")


if __name__ == "__main__":
    main()
