"""Where an int8 block's cycles go: the fusions of a compiled program of two blocks, dearest first, and the cost of one block.

    python benchmarks/tpu_profile.py google/siglip-so400m-patch14-384 2      # an encoder and a batch: about a minute

The cost of a block is the difference between programs of two blocks and of one; full depth is that, times the blocks."""

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp

from regcache_jax import tpu
from regcache_jax.encoders import catalog
from regcache_jax.encoders.serving import TILE, join_blocks, num_rows, serve_blocks
from regcache_jax.quantization.scheme import Scheme
from regcache_jax.registers.plan import Schedule


def compiled_text(name: str, batch: int, num_blocks: int) -> str:
    spec = catalog.get(name).spec
    blocks = dataclasses.replace(spec.image.blocks, num_blocks=num_blocks)
    spec = dataclasses.replace(spec, image=dataclasses.replace(spec.image, blocks=blocks))
    tokens = spec.image.num_tokens

    def serve(params, hidden):
        options = {"scheme": Scheme(), "tile": TILE, "num_tokens": tokens, "unroll": True}
        return serve_blocks(join_blocks(params), hidden, blocks, Schedule(0, 0, 0, 0), None, **options).rows

    hidden = jax.ShapeDtypeStruct((batch, num_rows(tokens, 0, TILE), blocks.width), jnp.bfloat16)
    return tpu.compile_for("v5e:2x2", serve, tpu.quantized_shapes(spec, Scheme())["blocks"], hidden).as_text()


if __name__ == "__main__":
    name, batch = sys.argv[1], int(sys.argv[2])
    one, two = (compiled_text(name, batch, num_blocks) for num_blocks in (1, 2))
    lines = [(re.search(r'"estimated_cycles":"?(\d+)', line), line) for line in two.splitlines()]
    for cycles, line in sorted(((int(found[1]), line.strip()) for found, line in lines if found), reverse=True)[:16]:
        print(f"{cycles:10,} {line[:140]}")
    cost = tpu.estimates(two)[0] - tpu.estimates(one)[0]
    print(f"{cost:10,} cycles a block of batch {batch}, {cost / batch:,.0f} an image")
