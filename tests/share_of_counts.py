"""One process of several, on the devices XLA_FLAGS simulates: prints counts and features of made-up examples as JSON.

Arguments: process, processes, port of the coordinator, parallel, number of examples."""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from regcache_jax.data.batches import batches
from regcache_jax.data.sources import Example
from regcache_jax.evaluation.loop import extract_labelled, sum_batches
from regcache_jax.evaluation.zero_shot import count_hits


class Numbers:
    """Examples of which each is drawn from its own place."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        image = np.random.default_rng(index).normal(size=(2, 2, 3)).astype(np.float32)
        return Example(image=image, label=index % 7, name=str(index))


def top_corner(picture):
    """A preprocessing whose result has one shape whatever comes in, as a share without examples relies on."""
    return np.asarray(picture, np.float32)[:2, :2]


def project(matrix, images):
    return images.reshape(images.shape[0], -1) @ matrix


def count(matrix, batch):
    return count_hits(project(matrix, jnp.asarray(batch.image)), jnp.asarray(batch.label), jnp.asarray(batch.mask))


def main(process: int, processes: int, port: int, parallel: str, number: int) -> None:
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    matrix = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)
    data = Numbers(number)
    counts = sum_batches(count, matrix, batches(data, top_corner, 8), parallel=parallel)
    found = extract_labelled(project, matrix, batches(data, top_corner, 8), parallel=parallel)
    rows = {name: np.asarray(leaf).tolist() for name, leaf in found.items()}
    print(json.dumps({"counts": {name: leaf.tolist() for name, leaf in counts.items()}, "rows": rows}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4], int(sys.argv[5]))
