"""Where a program's cycles go: the operations of a compiled program of two blocks, dearest first, and the cost of one block.

    python benchmarks/tpu_profile.py google/siglip-base-patch16-224 24                # an encoder and a batch: half a minute
    python benchmarks/tpu_profile.py google/siglip-so400m-patch14-384 2 int8+registers

Cycles an image. The cost of a block is the difference between programs of two blocks and of one."""

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}

import re
import sys

import jax
import jax.numpy as jnp

from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders import catalog
from regcache_jax.tpu import ask as tpu
from regcache_jax.tpu import compiler, programs


def compiled_text(name: str, batch: int, program: str, num_blocks: int) -> str:
    spec = tpu.shallow(catalog.get(name).spec, num_blocks)
    function, weights = programs.program(spec, program, Scheme(), None)
    pixels = spec.image.image_size
    images = jax.ShapeDtypeStruct((batch, pixels, pixels, 3), jnp.bfloat16)
    return compiler.compile_for("v5e:2x2", function, weights, images).as_text()


if __name__ == "__main__":
    name, batch, program = sys.argv[1], int(sys.argv[2]), (sys.argv[3:] or ["int8"])[0]
    one, two = (compiled_text(name, batch, program, num_blocks) for num_blocks in (1, 2))
    lines = [(re.search(r'"estimated_cycles":"?(\d+)', line), line) for line in two.splitlines()]
    for cycles, line in sorted(((int(found[1]), line.strip()) for found, line in lines if found), reverse=True)[:40]:
        print(f"{cycles / batch:8,.0f} {line[:140]}")
    cost = compiler.estimates(two)[0] - compiler.estimates(one)[0]
    print(f"{cost / batch:8,.0f} cycles an image for a block, {compiler.estimates(two)[0] / batch:,.0f} for all of it")
