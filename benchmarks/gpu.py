"""bf16, int8 and int8 with registers on whatever JAX finds (a GPU, a TPU, a CPU), in one run: images a second by batch.

    python benchmarks/gpu.py                      # B/16, L/14 and So400m/14 at batches 8, 32 and 128
    python benchmarks/gpu.py --hlo                # lowers for CUDA on any machine and counts int8 products and upcasts

No GPU was at hand when docs/performance.md was written; without one only `--hlo` says something about GPUs."""

import argparse
import re
import time

import jax
import jax.numpy as jnp
from jax import export as stablehlo

from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders import catalog
from regcache_jax.tpu import programs

MODELS = ("google/siglip-base-patch16-224", "openai/clip-vit-large-patch14", "google/siglip-so400m-patch14-384")
PROGRAMS = ("bf16", "int8", "int8+registers", "int8+registers+deletion")


def filled(shapes):
    """Numbers for a tree of shapes: what they are does not change the time, but zeros might."""
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def seconds(function, *arguments, repeats: int = 10) -> float:
    """Median time of a call, after two that compile and warm up."""
    for _ in range(2):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return sorted(times)[repeats // 2]


def run(models: list[str], batches: list[int]) -> None:
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}", flush=True)
    for model in models:
        spec = catalog.get(model).spec
        for batch in batches:
            images = jnp.ones((batch, spec.image.image_size, spec.image.image_size, 3), jnp.bfloat16)
            for program in PROGRAMS:
                function, weights = programs.program(spec, program, Scheme(), None)
                rate = batch / seconds(jax.jit(function), filled(weights), images)
                print(f"{model:34} batch {batch:4} {program:24} {rate:9.1f} images/s", flush=True)


def hlo(models: list[str]) -> None:
    for model in models:
        spec = catalog.get(model).spec
        function, weights = programs.program(spec, "int8+registers", Scheme(), None)
        images = jax.ShapeDtypeStruct((8, spec.image.image_size, spec.image.image_size, 3), jnp.bfloat16)
        # plain lists of arrays: jax.export does not know the project's own pytrees
        leaves, tree = jax.tree.flatten(weights)

        def flat(leaves, images, function=function, tree=tree):
            return function(jax.tree.unflatten(tree, leaves), images)

        text = stablehlo.export(jax.jit(flat), platforms=["cuda"])(leaves, images).mlir_module()
        products = re.findall(
            r"dot_general.*: \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\) -> tensor<[\dx]*x(\w+)>", text
        )
        print(model, "lowered for cuda:", {kind: products.count(kind) for kind in sorted(set(products))}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hlo", action="store_true")
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    arguments = parser.parse_args()
    if arguments.hlo:
        hlo(arguments.models)
    else:
        run(arguments.models, arguments.batches)
