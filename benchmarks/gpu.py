"""Wall times of the Flax bf16 peer and of our programs on whatever JAX finds (a GPU, a TPU, a CPU), by encoder and batch.

    python benchmarks/gpu.py --seconds 240 --json gpu.json     # B/16, L/14, So400m/14 at batches 1 to 256, dearest questions first
    python benchmarks/gpu.py --models openai/clip-vit-large-patch14 --batches 32 --programs flax-bf16 int8/gpu
    python benchmarks/gpu.py --trace                           # the same, and the time of each kind of kernel
    python benchmarks/gpu.py --hlo                             # lowers for CUDA on any machine and counts products by type

`/gpu`: in the form of `encoders/forms.py` for a GPU (cuDNN's flash attention, integer kernels with their inputs last in memory). Programs
of one encoder and batch are compiled side by side and then timed one after another. A line a program as it is done; one that
fails says why in a line. JSON is written after every line."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as stablehlo

from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders import catalog
from regcache_jax.encoders.forms import PLAIN, form_for
from regcache_jax.tpu import programs

B16, L14, SO400M = (
    "google/siglip-base-patch16-224",
    "openai/clip-vit-large-patch14",
    "google/siglip-so400m-patch14-384",
)
PROGRAMS = programs.PROGRAMS
FORMED = ("bf16/gpu", "int8/gpu", "int8+registers/gpu", "int8+registers+deletion/gpu")
GROUPS = [
    *((model, 32, (PROGRAMS[0], *FORMED)) for model in (SO400M, B16, L14)),
    *((B16, batch, (PROGRAMS[0], *FORMED)) for batch in (128, 1)),
    *((L14, batch, (PROGRAMS[0], *FORMED)) for batch in (128, 1)),
    *((B16, batch, (PROGRAMS[0], *FORMED)) for batch in (8, 256)),
    *((model, 32, PROGRAMS[1:]) for model in (B16, L14, SO400M)),
    *((SO400M, batch, (PROGRAMS[0], *FORMED)) for batch in (128, 1, 8)),
    *((model, batch, PROGRAMS + FORMED) for model in (B16, L14, SO400M) for batch in (1, 8, 128, 256)),
]
"""Encoder, batch, programs: what is worth most comes first."""


def parted(name: str) -> tuple[str, bool]:
    """`int8+registers/gpu` -> the program `int8+registers`, and whether it has a GPU's form."""
    program, _, form = name.partition("/")
    return program, form == "gpu"


def lowered(model: str, batch: int, name: str) -> tuple[Any, Any]:
    """A program of one encoder and batch, ready to compile, and the shapes of its weights."""
    spec = catalog.get(model).spec
    assert spec is not None
    program, formed = parted(name)
    scheme = None if program == "bf16" else Scheme()
    form = form_for("gpu", spec.image, scheme) if formed else PLAIN
    function, weights = programs.program(spec, program, scheme, None, form)
    images = jax.ShapeDtypeStruct((batch, spec.image.image_size, spec.image.image_size, 3), jnp.bfloat16)
    return jax.jit(function).lower(weights, images), weights


def drawn(shapes: Any) -> Any:
    """Random numbers for a tree of shapes: what they are changes the power that a product takes, and so its time."""
    rng = np.random.default_rng(0)
    integers = rng.integers(-127, 128, 1 << 20, np.int8)
    floats = 0.02 * np.abs(rng.standard_normal(1 << 20, np.float32))  # scales are positive

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        pattern = integers if jnp.issubdtype(leaf.dtype, jnp.integer) else floats
        return jnp.asarray(np.resize(pattern.astype(leaf.dtype), leaf.shape))

    return jax.tree.map(draw, shapes)


def seconds(function: Callable[..., Any], *arguments: Any, budget: float) -> tuple[float, float, float]:
    """Of a call among many that are queued: median and least time over seven rounds; and the median of a call that is waited for."""
    for _ in range(3):
        jax.block_until_ready(function(*arguments))
    alone = []
    for _ in range(7):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        alone.append(time.perf_counter() - started)
    calls = max(3, min(100, int(budget / 7 / statistics.median(alone))))
    queued = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)
        queued.append((time.perf_counter() - started) / calls)
    return statistics.median(queued), min(queued), statistics.median(alone)


def kernels(text: str) -> dict[str, int]:
    """The operations of a compiled program by kind: fusions, and library calls by name."""
    found = re.findall(r'custom_call_target="([^"]+)"| (fusion|transpose|copy|convolution|dot)\(', text)
    return dict(collections.Counter(target or kind for target, kind in found))


KINDS = {
    "attention": "cudnn_generated",
    "products": "gemm|^nvjet|cutlass|convolve|fprop",
    "zeros": "^Memset",
    "between": "",
}
"""Kinds of kernels by what their names hold; the first that fits."""


def traced(function: Callable[..., Any], *arguments: Any, calls: int = 5) -> dict[str, tuple[float, float]]:
    """Kernels that run in a call, and their seconds, by kind. The profiler sees a graph of kernels as one; XLA_FLAGS with
    --xla_gpu_enable_command_buffer= has them launched one by one."""
    found = {kind: (0.0, 0.0) for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                result = function(*arguments)
            jax.block_until_ready(result)
        for file in Path(folder).rglob("*.xplane.pb"):
            planes = jax.profiler.ProfileData.from_file(str(file)).planes
            events = [event for plane in planes if "GPU" in plane.name for line in plane.lines for event in line.events]
            for event in events:
                kind = next(kind for kind, names in KINDS.items() if re.search(names, event.name))
                kernels, spent = found[kind]
                found[kind] = kernels + 1 / calls, spent + event.duration_ns * 1e-9 / calls
    return found


def group(
    model: str, batch: int, names: tuple[str, ...], budget: float, trace: bool = False
) -> Iterator[dict[str, Any]]:
    """Compiles programs side by side, then times one after another; a row each."""

    def compile_one(name: str) -> Any:
        started = time.perf_counter()
        program, shapes = lowered(model, batch, name)
        return program.compile(), shapes, time.perf_counter() - started

    pixels = catalog.get(model).spec.image.image_size
    images = drawn(jax.ShapeDtypeStruct((batch, pixels, pixels, 3), jnp.bfloat16))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = {name: pool.submit(compile_one, name) for name in names}
        concurrent.futures.wait(waiting.values())
    for name, future in waiting.items():
        row: dict[str, Any] = {"model": model, "batch": batch, "program": name}
        try:
            compiled, shapes, row["compile_seconds"] = future.result()
            row["kernels"] = kernels(compiled.as_text())
            memory = compiled.memory_analysis()
            row |= {"temp_bytes": memory.temp_size_in_bytes, "argument_bytes": memory.argument_size_in_bytes}
            weights = drawn(shapes)
            row["seconds"], row["least"], row["alone"] = seconds(compiled, weights, images, budget=budget)
            row |= {"traced": traced(compiled, weights, images)} if trace else {}
            del weights
        except Exception as error:  # out of memory, or what the device has not: the others go on
            row["fault"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        yield row


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    begin = f"{row['model']:34} batch {row['batch']:4} {row['program']:38}"
    if "fault" in row:
        return f"{begin} {row['fault']}"
    kinds = row.get("traced", {}).items()
    return (
        f"{begin} {row['seconds'] * 1e3:9.3f} ms {row['batch'] / row['seconds']:9.1f} images/s  least {row['least'] * 1e3:9.3f}"
        f"  alone {row['alone'] * 1e3:9.3f} ms  {sum(row['kernels'].values()):4} operations  temporaries "
        f"{row['temp_bytes'] / 1e6:7.1f} MB  compiled in {row['compile_seconds']:.0f} s"
        + "".join(f"; {kind}: {kernels:.0f} kernels, {spent * 1e6:.0f} us" for kind, (kernels, spent) in kinds)
    )


def run(
    groups: list[tuple[str, int, tuple[str, ...]]], limit: float, path: Path | None, budget: float, trace: bool
) -> None:
    """All groups that can be begun within `limit` seconds."""
    started, rows, device = time.monotonic(), [], jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}", flush=True)
    for model, batch, names in groups:
        for row in group(model, batch, names, budget, trace):
            rows.append(row)
            print(line(row), f" [{time.monotonic() - started:.0f} s]", flush=True)
            if path is not None:
                path.write_text(
                    json.dumps({"device": device.device_kind, "jax": jax.__version__, "rows": rows}, indent=1)
                )
        if time.monotonic() - started > limit:
            print(f"{limit:.0f} seconds are over", flush=True)
            return


def hlo(models: list[str]) -> None:
    """Products by type in what is handed to XLA's GPU compiler."""
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
    parser.add_argument("--seconds", type=float, default=240.0, help="no group of programs is begun later")
    parser.add_argument("--timing", type=float, default=0.7, help="about so many seconds for the timing of one program")
    parser.add_argument("--trace", action="store_true", help="kernels and their time by kind, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="*", default=[B16, L14, SO400M])
    parser.add_argument("--batches", type=int, nargs="*")
    parser.add_argument("--programs", nargs="*", help="instead of those of each group")
    arguments = parser.parse_args()
    if arguments.hlo:
        hlo(arguments.models)
    else:
        batches = arguments.batches or [1, 8, 32, 128, 256]
        wanted = [found for found in GROUPS if found[0] in arguments.models and found[1] in batches]
        if arguments.programs:
            wanted = [(model, batch, tuple(arguments.programs)) for model in arguments.models for batch in batches]
        run(wanted, arguments.seconds, arguments.json, arguments.timing, arguments.trace)
