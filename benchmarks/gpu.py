"""Wall times of the Flax bf16 peer and of our programs on whatever JAX finds (a GPU, a TPU, a CPU), by encoder and batch.

    python benchmarks/gpu.py --seconds 240 --json gpu.json     # B/16, L/14, So400m/14 at batches 1 to 256, dearest questions first
    python benchmarks/gpu.py --models openai/clip-vit-large-patch14 --batches 32 --programs flax-bf16 int8+flash
    python benchmarks/gpu.py --hlo                             # lowers for CUDA on any machine and counts products by type

`+flash`: attention by cuDNN's flash attention (a GPU has it). `+out-in`: the layers' kernels laid out in memory with the inputs last, as
tensor cores read them. Programs of one encoder and batch are compiled side by side and then timed one after another. A line a program as
it is done; one that fails says why in a line. JSON is written after every line."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as stablehlo
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from regcache_jax.core.plan import BlockRegister
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Dense, QuantizedTensor
from regcache_jax.encoders import blocks, catalog
from regcache_jax.ops.attention import Attended
from regcache_jax.tpu import programs

B16, L14, SO400M = (
    "google/siglip-base-patch16-224",
    "openai/clip-vit-large-patch14",
    "google/siglip-so400m-patch14-384",
)
PROGRAMS = programs.PROGRAMS
VARIANTS = (
    "bf16+flash",
    "int8+flash",
    "int8+out-in",
    "int8+flash+out-in",
    "int8+registers+deletion+flash+out-in",
    "bf16+flash+out-in",
)
GROUPS = [
    (B16, 32, PROGRAMS + VARIANTS),
    *((model, 32, PROGRAMS + VARIANTS[:1] + VARIANTS[3:5]) for model in (L14, SO400M)),
    *((B16, batch, PROGRAMS + VARIANTS[:1] + VARIANTS[3:5]) for batch in (128, 1, 8, 256)),
    *((model, batch, PROGRAMS + VARIANTS[:1] + VARIANTS[3:4]) for batch in (128, 8, 1, 256) for model in (L14, SO400M)),
]  # fmt: skip
"""Encoder, batch, programs: what is worth most comes first."""


def flash_attend(query, key, value, bias=None, register=None, count=None, rounding=None) -> Attended:
    """`ops.attention.attend` by cuDNN: registers are joined to keys and values, what is added to logits goes in as a bias."""
    assert rounding is None
    rows, heads, num_tokens = query.shape[1], query.shape[2], key.shape[1]
    added = None if bias is None else jnp.broadcast_to(bias, (bias.shape[0], heads, rows, num_tokens))
    if count is not None:
        added = jnp.broadcast_to(jnp.maximum(jnp.log(count), -1e9)[None, :, None], (1, heads, rows, num_tokens))
    if register is not None:
        key, value = (
            jnp.concatenate([part, jnp.broadcast_to(own.astype(part.dtype), (len(part), *own.shape))], axis=1)
            for part, own in ((key, register.key), (value, register.value))
        )
        tokens = jnp.zeros((1, heads, rows, num_tokens)) if added is None else added
        own = jnp.broadcast_to(register.logit_bias.T[None, :, None], (1, heads, rows, register.key.shape[0]))
        added = jnp.concatenate([tokens, own], axis=-1)
    mixed = jax.nn.dot_product_attention(
        query, key, value, None if added is None else added.astype(query.dtype), implementation=IMPLEMENTATION
    )
    return Attended(mixed.astype(query.dtype), jnp.zeros(()), None)


def flash_attend_slot(query, key, value, slot: int, register: BlockRegister | None, rounding=None) -> Attended:
    """`ops.attention.attend_slot` by cuDNN: padding is cut off, registers are joined."""
    return flash_attend(query, key[:, :slot], value[:, :slot], register=register, rounding=rounding)


IMPLEMENTATION = "cudnn"


@contextlib.contextmanager
def attention_of(variant: list[str]) -> Iterator[None]:
    """While a program is traced: which attention its blocks have."""
    if "flash" not in variant:
        yield
        return
    with mock.patch.object(blocks, "attend", flash_attend), mock.patch.object(blocks, "attend_slot", flash_attend_slot):
        yield


def parted(name: str) -> tuple[str, list[str]]:
    """`int8+registers+flash` -> the program `int8+registers`, and what is varied."""
    words = name.split("+")
    variant = [word for word in words if word in ("flash", "out-in")]
    return "+".join(word for word in words if word not in variant), variant


def formats(weights: Any, variant: list[str], sharding: SingleDeviceSharding) -> Any:
    """How each weight lies in memory: as it is, or a layer's kernel with its inputs last."""

    def of_leaf(leaf: jax.ShapeDtypeStruct, num_inputs: int = 0) -> Format:
        axes = range(leaf.ndim)
        order = (*axes[num_inputs:], *axes[:num_inputs])
        return Format(Layout(major_to_minor=order), sharding)

    def of_part(part: Any) -> Any:
        if isinstance(part, Dense) and "out-in" in variant:
            kernel = part.kernel
            if isinstance(kernel, QuantizedTensor):
                kernel = kernel.replace(values=of_leaf(kernel.values, part.num_inputs), scale=of_leaf(kernel.scale))
            else:
                kernel = of_leaf(kernel, part.num_inputs)
            return jax.tree.map(of_leaf, part.replace(kernel=None)).replace(kernel=kernel)
        return jax.tree.map(of_leaf, part)

    return jax.tree.map(of_part, weights, is_leaf=lambda part: isinstance(part, Dense))


def lowered(model: str, batch: int, name: str) -> tuple[Any, Any]:
    """A program of one encoder and batch, with the attention of the moment, ready to compile, and the shapes of its weights."""
    spec = catalog.get(model).spec
    base, variant = parted(name)
    function, weights = programs.program(spec, base, Scheme(), None)
    sharding = SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(
        lambda leaf, how: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=how),
        weights,
        formats(weights, variant, sharding),
    )
    images = jax.ShapeDtypeStruct((batch, spec.image.image_size, spec.image.image_size, 3), jnp.bfloat16)
    return jax.jit(function).lower(placed, images), placed


def drawn(shapes: Any) -> Any:
    """Random numbers for a tree of shapes, laid out as they say: what they are changes the power a product takes, and so its time."""
    rng = np.random.default_rng(0)
    integers = rng.integers(-127, 128, 1 << 20, np.int8)
    floats = 0.02 * np.abs(rng.standard_normal(1 << 20, np.float32))  # scales are positive

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        pattern = integers if jnp.issubdtype(leaf.dtype, jnp.integer) else floats
        return jax.device_put(np.resize(pattern.astype(leaf.dtype), leaf.shape), leaf.format)

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


def group(model: str, batch: int, names: tuple[str, ...], budget: float) -> Iterator[dict[str, Any]]:
    """Compiles programs side by side, then times one after another; a row each."""

    def compile_one(name: str) -> Any:
        started = time.perf_counter()
        program, shapes = lowered(model, batch, name)
        return program.compile(), shapes, time.perf_counter() - started

    pixels = catalog.get(model).spec.image.image_size
    placement = formats(jax.ShapeDtypeStruct((1,) * 4, jnp.bfloat16), [], SingleDeviceSharding(jax.devices()[0]))
    images = drawn(jax.ShapeDtypeStruct((batch, pixels, pixels, 3), jnp.bfloat16, sharding=placement))
    # tracing swaps functions of the package, so it must not happen side by side: only programs of the same attention do
    for flash, alike in itertools.groupby(
        sorted(names, key=lambda name: "flash" in name), lambda name: "flash" in name
    ):
        with attention_of(["flash"] if flash else []), concurrent.futures.ThreadPoolExecutor(8) as pool:
            waiting = {name: pool.submit(compile_one, name) for name in alike}
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
                del weights
            except Exception as error:  # out of memory, or what the device has not: the others go on
                row["fault"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            yield row


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    begin = f"{row['model']:34} batch {row['batch']:4} {row['program']:38}"
    if "fault" in row:
        return f"{begin} {row['fault']}"
    return (
        f"{begin} {row['seconds'] * 1e3:9.3f} ms {row['batch'] / row['seconds']:9.1f} images/s  least {row['least'] * 1e3:9.3f}"
        f"  alone {row['alone'] * 1e3:9.3f} ms  {sum(row['kernels'].values()):4} operations  temporaries "
        f"{row['temp_bytes'] / 1e6:7.1f} MB  compiled in {row['compile_seconds']:.0f} s"
    )


def run(groups: list[tuple[str, int, tuple[str, ...]]], limit: float, path: Path | None, budget: float) -> None:
    """All groups that can be begun within `limit` seconds."""
    started, rows, device = time.monotonic(), [], jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}", flush=True)
    for model, batch, names in groups:
        for row in group(model, batch, names, budget):
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
        run(wanted, arguments.seconds, arguments.json, arguments.timing)
