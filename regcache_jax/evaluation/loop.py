"""One evaluation loop under `jax.pmap` and under `jax.jit` with a sharded batch, with the same results.

Batches are padded to one shape and masked; large per-device batches are cut into micro-batches; counts are summed on
the devices in integers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from regcache_jax.data.batches import Batch
from regcache_jax.errors import UserError

Parallel = Literal["jit", "pmap"]
Step = Callable[[Any, Batch], Any]
"""A pure function of (state, batch). What it returns has the batch's axis in front (`map_batches`) or is a sum
over the batch (`sum_batches`)."""


def in_micro_batches(step: Step, micro_batch: int | None) -> Step:
    """The same per-example step, run over slices of `micro_batch` rows one after the other, so that temporaries stay small."""

    def sliced(state: Any, batch: Batch) -> Any:
        rows = batch.mask.shape[0]
        if micro_batch is None or rows <= micro_batch or rows % micro_batch:
            return step(state, batch)
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, micro_batch, *leaf.shape[1:]), batch)
        outputs = jax.lax.map(functools.partial(step, state), parts)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)

    return sliced


def round_up(batch_size: int) -> int:
    """The next batch size that all devices share evenly."""
    devices = jax.local_device_count()
    return -(-batch_size // devices) * devices


def map_batches(
    step: Step,
    state: Any,
    batches: Iterable[Batch],
    *,
    parallel: Parallel = "jit",
    micro_batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Runs a per-example step over all batches; returns its outputs as NumPy arrays with one row a real example.

    Raises UserError where a batch does not divide by the number of devices, and for an empty dataset."""
    run, place = _compile(in_micro_batches(step, micro_batch), parallel, summed=False)
    state = place(state)
    rows: list[Any] = []
    for batch in batches:
        output = jax.tree.map(lambda leaf: np.asarray(leaf), run(state, batch))
        if parallel == "pmap":
            output = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), output)
        rows.append(jax.tree.map(lambda leaf, mask=batch.mask: leaf[mask], output))
        if progress is not None:
            progress(int(batch.mask.sum()))
    if not rows:
        raise UserError("there is nothing to evaluate: the dataset is empty")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def sum_batches(
    step: Step,
    state: Any,
    batches: Iterable[Batch],
    *,
    parallel: Parallel = "jit",
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Runs a counting step over all batches, sums its integers on the devices, and returns the totals as Python integers."""
    run, place = _compile(step, parallel, summed=True)
    state, totals = place(state), None
    for batch in batches:
        counts = run(state, batch)
        totals = counts if totals is None else jax.tree.map(jnp.add, totals, counts)
        if progress is not None:
            progress(int(batch.mask.sum()))
    if totals is None:
        raise UserError("there is nothing to evaluate: the dataset is empty")
    first = (lambda leaf: np.asarray(leaf)[0]) if parallel == "pmap" else np.asarray
    return jax.tree.map(first, totals)


def _compile(step: Step, parallel: Parallel, summed: bool) -> tuple[Callable[[Any, Batch], Any], Callable[[Any], Any]]:
    """The step over all devices of this process, and where its state has to lie."""
    devices = jax.local_devices()
    if parallel == "pmap":
        reduced = (lambda state, batch: jax.lax.psum(step(state, batch), "data")) if summed else step
        mapped = jax.pmap(reduced, axis_name="data", in_axes=(None, 0), devices=devices)

        def run_pmap(state: Any, batch: Batch) -> Any:
            _check_divides(batch, len(devices))
            split = jax.tree.map(lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]), batch)
            return mapped(state, split)

        return run_pmap, lambda state: state
    mesh = Mesh(np.array(devices), ("data",))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, out_shardings=everywhere if summed else rows)

    def run_jit(state: Any, batch: Batch) -> Any:
        _check_divides(batch, len(devices))
        return jitted(state, jax.device_put(batch, rows))

    return run_jit, lambda state: jax.device_put(state, everywhere)


def _check_divides(batch: Batch, devices: int) -> None:
    if len(batch.mask) % devices:
        raise UserError(f"a batch of {len(batch.mask)} does not divide over {devices} devices; use a multiple")


def extract_features(
    encode: Callable[[Any, Float[Array, "B S S 3"]], Float[Array, "B E"]],
    state: Any,
    batches: Iterable[Batch],
    *,
    parallel: Parallel = "jit",
    micro_batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "n E"]:
    """Features of all real examples, in order; `encode(state, images)` is `encode_image` with an encoder as state."""
    step = functools.partial(_encode_step, encode)
    return map_batches(step, state, batches, parallel=parallel, micro_batch=micro_batch, progress=progress)


def _encode_step(encode: Callable[[Any, Any], Any], state: Any, batch: Batch) -> Any:
    return encode(state, jnp.asarray(batch.image))
