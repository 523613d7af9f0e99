"""Time and peak memory of converting a large checkpoint: a random CLIP ViT-H/14 in shards, as Hugging Face writes it.

    python benchmarks/convert.py [--blocks 32] [--work FOLDER]

Prints the size of the parameters, the peak resident memory of the converting process over its start, and the time as a
ratio to `safetensors.numpy.load_file` on the same files in the same run: that of a clock, and that of the processor, which
other work on the machine hardly lengthens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
from regcache_jax.converters import huggingface_clip

from regcache_jax import converters
from regcache_jax.core.names import to_names
from regcache_jax.encoders import catalog
from regcache_jax.encoders.parameters import parameter_shapes

SHARD_BYTES = 2**29


def write_checkpoint(folder: Path, num_blocks: int) -> int:
    """Writes a random ViT-H/14 in shards, a tensor at a time; returns the bytes of its parameters."""
    spec = catalog.get("laion/CLIP-ViT-H-14-laion2B-s32B-b79K").spec
    assert spec is not None
    shapes = {path: leaf.shape for path, leaf in to_names(parameter_shapes(spec)).items()}
    rng, shard, files, total = np.random.default_rng(0), {}, {}, 0
    folder.mkdir(parents=True)

    def flush() -> None:
        name = f"model-{len(set(files.values())) + 1:05d}-of-00099.safetensors"
        safetensors.numpy.save_file(shard, folder / name)
        files.update(dict.fromkeys(shard, name))
        shard.clear()

    for rule in huggingface_clip.RULES:
        ours = shapes[rule.paths[0]]
        stacked = "*" in rule.theirs
        depth = num_blocks if stacked and rule.paths[0].startswith("image/") else ours[0] if stacked else 1
        shape = rule.arrangement.their_shape(ours[1:] if stacked else ours)
        for block in range(depth):
            shard[rule.theirs.replace("*", str(block))] = np.asarray(
                rng.standard_normal(shape, np.float32) * np.float32(0.02)
            )
            total += 4 * int(np.prod(shape))
            if sum(array.nbytes for array in shard.values()) > SHARD_BYTES:
                flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    tower = {"hidden_act": "gelu", "intermediate_size": 5120, "hidden_size": 1280, "num_attention_heads": 16}
    text = {"hidden_act": "gelu", "intermediate_size": 4096, "hidden_size": 1024, "num_attention_heads": 16}
    config = {
        "model_type": "clip",
        "projection_dim": 1024,
        "vision_config": {**tower, "num_hidden_layers": num_blocks, "patch_size": 14, "image_size": 224},
        "text_config": {**text, "num_hidden_layers": 24},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return total


def resident_bytes() -> int:
    """Resident memory of this process, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell the resident memory")


def measure(source: Path, out: Path) -> None:
    """Converts in this process and prints seconds and peak bytes over the start (sampled 100 times a second)."""
    start, peak, done = resident_bytes(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, resident_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    began, busy = time.perf_counter(), time.process_time()
    converters.convert(source, out)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - busy
    done.set()
    sampler.join()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak - start}))


def main() -> None:
    """Writes the checkpoint, converts it in a process of its own, reads it with safetensors, prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=32, help="blocks of the image tower (32: the real ViT-H/14)")
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        source, out = Path(work) / "source", Path(work) / "model"
        parameters = write_checkpoint(source, options.blocks)
        command = [sys.executable, __file__, "--measure", str(source), str(out)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        began, busy = time.perf_counter(), time.process_time()
        for shard in sorted(source.glob("*.safetensors")):
            safetensors.numpy.load_file(shard)
        reading, cpu_reading = time.perf_counter() - began, time.process_time() - busy
    print(f"parameters               {parameters / 1e9:8.2f} GB")
    print(f"peak memory / parameters {result['peak_bytes'] / parameters:8.2f}")
    print(f"time                     {result['seconds']:8.1f} s")
    print(f"time / load_file         {result['seconds'] / reading:8.1f}   (load_file: {reading:.1f} s)")
    print(f"CPU time / load_file     {result['cpu_seconds'] / cpu_reading:8.1f}   (load_file: {cpu_reading:.1f} s)")


if __name__ == "__main__":
    main()
