"""Batches cut into slices that the devices work on one after the other, so that temporaries stay small; and how large a slice is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.tpu.batches import cheapest, sweep
from regcache_jax.tpu.compiler import estimates

MicroBatch = int | Literal["auto"] | None
"""Rows a device works on at a time: so many, as many as are cheapest there, or all of its share."""
Step = Callable[[PyTree, PyTree], PyTree]
"""A pure function of (state, batch); a batch is a `Batch` or any named tuple of arrays with a `mask`. What it returns has the
batch's axis in front."""

Compile = Callable[..., Any]
"""From a step and the shapes of its arguments to a compiled program."""

CACHE_BYTES = 10 << 20
"""What a CPU's cache may be asked to hold: found with a B/16, see docs/evaluation.md."""


@functools.lru_cache(maxsize=32)  # one closure a step, so that JAX finds what it has compiled
def in_micro_batches(step: Step, micro_batch: int | None, shares: int = 1) -> Step:
    """The same step, run over slices one after the other, so that temporaries stay small: `micro_batch` rows of every device's
    share of the batch. `shares`: devices over which the rows that the step sees are spread (1 under pmap, whose step sees those of
    one device). Outputs come back in the batch's order."""

    def sliced(state: PyTree, batch: PyTree) -> PyTree:
        rows = batch.mask.shape[0] // shares
        if micro_batch is None or rows <= micro_batch or rows % micro_batch:
            return step(state, batch)
        slices = rows // micro_batch

        def cut(leaf: Array) -> Array:  # every slice takes some rows of each device, so that nothing moves between them
            parts = leaf.reshape(shares, slices, micro_batch, *leaf.shape[1:])
            return jnp.swapaxes(parts, 0, 1).reshape(slices, shares * micro_batch, *leaf.shape[1:])

        def join(leaf: Array) -> Array:
            parts = leaf.reshape(slices, shares, micro_batch, *leaf.shape[2:])
            return jnp.swapaxes(parts, 0, 1).reshape(shares * rows, *leaf.shape[2:])

        outputs = jax.lax.map(functools.partial(step, state), jax.tree.map(cut, batch))
        return jax.tree.map(join, outputs)

    return sliced


def cheapest_micro_batch(step: Step, state: PyTree, batch: PyTree, compile: Compile | None = None) -> int | None:
    """The slice of one device's share that costs least a row by the compiler's estimate, as `regcache tpu` estimates it: where
    temporaries leave on-chip memory, a row becomes dear. None (no cutting) where the compiler estimates nothing: elsewhere than on a
    TPU.

    `batch`: one device's share. Slices divide it; `tpu.batches.sweep` chooses those that are compiled. A loop's body counts once in
    every estimate, so they compare slices and mean nothing else.
    `compile` makes a program of the step and the shapes of its arguments."""
    if compile is None:
        if jax.default_backend() != "tpu":
            return None
        compile = _compile_here
    rows = batch.mask.shape[0]
    sizes = tuple(size for size in range(1, rows + 1) if rows % size == 0)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)

    def cost(size: int) -> float:
        part = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), batch)
        try:
            return estimates(compile(step, shapes, part).as_text())[0] / size or float("inf")
        except (UserError, jax.errors.JaxRuntimeError):  # an absurd estimate, or more than the device's memory
            return float("inf")

    return cheapest(sweep(cost, sizes))


def _compile_here(step: Step, *shapes: Any) -> PyTree:
    return jax.jit(step).lower(*shapes).compile()


def own_micro_batch(step: Step, state: PyTree, batch: PyTree) -> int | None:
    """What `auto` means here. Nothing is cut where a scale is measured over the whole of an array: it would be another scale."""
    rows = len(batch.mask) // jax.local_device_count()
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Encoder))
    encoders = [leaf for leaf in leaves if isinstance(leaf, Encoder)]
    if any(encoder.scheme is not None and encoder.scheme.activations == "tensor" for encoder in encoders):
        return None
    if jax.default_backend() == "cpu":
        return cached_micro_batch(encoders[0].spec.image, rows) if encoders else None
    return cheapest_micro_batch(step, state, jax.tree.map(lambda leaf: leaf[:rows], batch))


def cached_micro_batch(spec: ImageSpec, rows: int) -> int:
    """For a CPU: the largest slice that divides a device's rows and whose largest array, a block's attention logits or the inside
    of its MLP, takes `CACHE_BYTES` at most."""
    tokens, blocks = spec.num_tokens, spec.blocks
    largest = 4 * tokens * max(blocks.num_heads * tokens, blocks.mlp_width)
    return max(size for size in range(1, rows + 1) if rows % size == 0 and (size == 1 or size * largest <= CACHE_BYTES))
