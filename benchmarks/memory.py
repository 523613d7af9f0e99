"""Host memory of an evaluation over many pictures: `dummy` data through a small encoder, resident MiB as it goes.

    python benchmarks/memory.py [--images 50000] [--workdir DIR]

What grows by itself are the rows that are kept: 64 bytes of features, and 8 of class and place, a picture.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax

from regcache_jax.core.spec import HALF, BlockSpec, EncoderSpec, ImageSpec, Preprocessing
from regcache_jax.data import open_dataset
from regcache_jax.encoders.encoder import Encoder, encode_image, init_params
from regcache_jax.evaluation.rows import Setting, encode_dataset
from regcache_jax.evaluation.watch import Watch

SPEC = EncoderSpec(
    "small",
    "clip",
    ImageSpec(32, 8, BlockSpec(16, 2, 2, 32, "gelu", 1e-6), class_token=True, pooling="class"),
    Preprocessing(32, "squash", "bilinear", 32, HALF, HALF),
)


def resident() -> float:
    """MiB of this process in memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    """Prints resident memory at every tenth of the way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--workdir")
    given = parser.parse_args()
    encoder = Encoder(init_params(SPEC, jax.random.key(0)), spec=SPEC)
    dataset = open_dataset("dummy", limit=given.images)
    done, told, began = 0, 0, time.monotonic()
    print("pictures\tMiB\tseconds")

    def progress(count: int) -> None:
        nonlocal done, told
        done += count
        if done * 10 // given.images > told:
            told = done * 10 // given.images
            print(f"{done}\t{resident():.1f}\t{time.monotonic() - began:.0f}", flush=True)

    watch = Watch()
    setting = Setting(256, workdir=given.workdir)
    encode_dataset(encode_image, encoder, dataset, SPEC.preprocessing, setting, progress=progress, watch=watch)
    print(f"the devices waited for the host {watch.share:.0%} of the time")


if __name__ == "__main__":
    main()
