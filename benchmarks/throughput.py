"""Pictures a second from files to features, ours beside PyTorch (transformers): ViT-B/16, float32, batch 16, this machine's cores.

    python benchmarks/throughput.py [--images 64] [--rounds 3] [--threads 2] [--json FILE]

The same random encoder (CLIP ViT-B/16's image tower), the same JPEG files, the same preparation by Pillow, the same number of threads;
ours and theirs take turns in one run, after one round each that is not counted. PyTorch's pictures are decoded by
`DataLoader` workers, each number of `--workers` in turn. Seconds of the processor stand beside those of the clock: other work on the
machine disturbs them less. `--processes` measures how ours grows from one process on one core to
two on two (jax.distributed on this machine).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

NAME, BATCH = "openai/clip-vit-base-patch16", 16


def write_pictures(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375, as photographs from the web have."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg", quality=90)


def ours(folder: Path) -> Callable[[], np.ndarray]:
    """A run of our loop over all pictures."""
    import jax

    from regcache_jax.core.sites import Parameters
    from regcache_jax.data import batches, open_dataset
    from regcache_jax.encoders import catalog
    from regcache_jax.encoders.encoder import Encoder, encode_image, init_params
    from regcache_jax.encoders.preprocess import preprocess
    from regcache_jax.evaluation.loop import extract_features, round_up
    from regcache_jax.evaluation.watch import Watch

    spec = catalog.get(NAME).spec
    params = init_params(spec, jax.random.key(0))
    encoder = Encoder(Parameters(params.image), spec=spec)
    dataset = open_dataset("folder", str(folder))

    def run() -> np.ndarray:
        watch = Watch()
        prepare = functools.partial(preprocess, spec=spec.preprocessing)
        made = batches(dataset, prepare, round_up(BATCH // jax.process_count()))
        features = extract_features(encode_image, encoder, made, micro_batch="auto", watch=watch)
        print(f"  the devices waited for the host {watch.share:.1%} of the time", flush=True)
        return features

    return run


def theirs(folder: Path, threads: int, workers: int) -> Callable[[], np.ndarray]:
    """A run of transformers' image tower over all pictures."""
    import torch
    import transformers

    from regcache_jax.encoders import catalog
    from regcache_jax.encoders.preprocess import preprocess

    torch.set_num_threads(threads)
    config = transformers.CLIPVisionConfig(patch_size=16, hidden_act="quick_gelu", projection_dim=512)
    network = transformers.CLIPVisionModelWithProjection(config).eval()
    preparation = catalog.get(NAME).spec.preprocessing

    class Files(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.files = sorted(folder.glob("*.jpg"))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.from_numpy(preprocess(self.files[index], preparation).transpose(2, 0, 1).copy())

    def run() -> np.ndarray:
        loader = torch.utils.data.DataLoader(
            Files(), BATCH, num_workers=workers, multiprocessing_context="fork" if workers else None
        )
        with torch.inference_mode():
            rows = [torch.nn.functional.normalize(network(each).image_embeds, dim=-1) for each in loader]
        return torch.cat(rows).numpy()

    return run


def timed(run: Callable[[], np.ndarray]) -> tuple[float, float]:
    """Seconds by the clock and of the processors (this process and its ended children)."""
    clock, own = time.perf_counter(), os.times()
    run()
    after = os.times()
    return time.perf_counter() - clock, sum(after[:4]) - sum(own[:4])


def one_of_several(folder: Path, process: int, processes: int, port: int) -> None:
    """One process of `--processes`, on a core of its own; prints pictures a second."""
    os.sched_setaffinity(0, {process})
    import jax

    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    run = ours(folder)
    run()
    seconds, used = timed(run)
    if process == 0:
        pictures = len(list(folder.glob("*.jpg")))
        print(f"{processes}\t{pictures / seconds:.2f}\t{used * processes / pictures:.3f}", flush=True)


def growth(folder: Path) -> None:
    """One process on one core, then two on two."""
    print("processes\tpictures/s\tprocessor s a picture")
    for processes in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, __file__, "--worker", str(folder)]
        started = [
            subprocess.Popen([*command, str(process), str(processes), str(port)]) for process in range(processes)
        ]
        if any([process.wait() for process in started]):
            raise SystemExit("a process failed")


def main() -> None:
    """Prints the table."""
    if sys.argv[1:2] == ["--worker"]:
        one_of_several(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="PyTorch's DataLoader workers")
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not given.processes:
        os.sched_setaffinity(0, range(given.threads))  # before XLA counts cores
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pictures(folder, given.images)
        if given.processes:
            growth(folder)
            return
        runs = {"regcache_jax": ours(folder)}
        runs |= {
            f"transformers, {workers} workers": theirs(folder, given.threads, workers) for workers in given.workers
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for turn in range(given.rounds + 1):
            for name, run in runs.items():
                taken = timed(run)
                print(f"round {turn}\t{name}\t{taken[0]:.2f} s\t{taken[1]:.2f} processor s", flush=True)
                if turn:
                    measured[name].append(taken)
    rows = [
        {"who": name, "images_per_second": given.images / np.median([clock for clock, _ in taken]),
         "processor_seconds_per_image": np.median([used for _, used in taken]) / given.images}
        for name, taken in measured.items()
    ]  # fmt: skip
    print("who\tpictures/s\tprocessor s a picture")
    for row in rows:
        print(f"{row['who']}\t{row['images_per_second']:.2f}\t{row['processor_seconds_per_image']:.3f}")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
