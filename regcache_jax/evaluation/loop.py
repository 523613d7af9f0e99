"""One evaluation loop under `jax.pmap` and under `jax.jit` with a sharded batch, on one host or many, with the same results.

Batches are padded to one shape and masked; large per-device batches are cut into micro-batches; counts are summed on the devices
in integers. The host prepares the next batch while the devices work on this one, and never runs further ahead than that.

Many hosts: after `jax.distributed.initialize()` the devices of all processes work on one program. Every process feeds its own
share (`data.batches` sees to that); totals and rows come back whole, on every process alike.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from regcache_jax.data.batches import Batch
from regcache_jax.errors import UserError

Parallel = Literal["jit", "pmap"]
Step = Callable[[Any, Any], Any]
"""A pure function of (state, batch); a batch is a `Batch` or any named tuple of arrays with a `mask`. What it returns has the
batch's axis in front (`map_batches`) or is a sum over the batch (`sum_batches`)."""

ON_CHIP_BYTES = {"tpu": 128 << 20}
"""Memory that a micro-batch's temporaries should fit, by platform; elsewhere nothing is gained by cutting."""


class Watch:
    """Wraps the batches of a run and measures how long the devices waited for the host to make them."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self.waited, self.elapsed = 0.0, 0.0

    def __iter__(self) -> Iterator[Any]:
        began = time.perf_counter()
        iterator = iter(self._batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            now = time.perf_counter()
            self.waited, self.elapsed = self.waited + now - asked, now - began
            if batch is None:
                return
            yield batch

    @property
    def share(self) -> float:
        """Fraction of the time spent waiting for the host (the first batch, which nothing hides, included)."""
        return self.waited / self.elapsed if self.elapsed else 0.0


@functools.lru_cache(maxsize=32)  # one closure a step, so that JAX finds what it has compiled
def in_micro_batches(step: Step, micro_batch: int | None) -> Step:
    """The same per-example step, run over slices of `micro_batch` rows one after the other, so that temporaries stay small."""

    def sliced(state: Any, batch: Any) -> Any:
        rows = batch.mask.shape[0]
        if micro_batch is None or rows <= micro_batch or rows % micro_batch:
            return step(state, batch)
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, micro_batch, *leaf.shape[1:]), batch)
        outputs = jax.lax.map(functools.partial(step, state), parts)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)

    return sliced


def fitting_micro_batch(step: Step, state: Any, batch: Any, limit: int | None = None) -> int | None:
    """The largest micro-batch that divides a device's rows and whose temporaries, by the compiler's account, fit into `limit`
    bytes: of on-chip memory by default, and None (no cutting) where the platform has none to speak of.

    `batch`: one device's share. Compiles the step once for every size tried, from the largest down."""
    limit = ON_CHIP_BYTES.get(jax.default_backend()) if limit is None else limit
    if limit is None:
        return None
    rows = batch.mask.shape[0]
    sizes = [size for size in range(rows, 0, -1) if rows % size == 0]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    for size in sizes:
        part = jax.tree.map(lambda leaf, size=size: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), batch)
        used = jax.jit(step).lower(shapes, part).compile().memory_analysis()
        if used is None or used.temp_size_in_bytes <= limit:
            return size
    return 1


def round_up(batch_size: int) -> int:
    """The next batch size that all devices of this process share evenly."""
    devices = jax.local_device_count()
    return -(-batch_size // devices) * devices


def map_batches(
    step: Step,
    state: Any,
    batches: Iterable[Any],
    *,
    parallel: Parallel = "jit",
    micro_batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Runs a per-example step over all batches; returns its outputs as NumPy arrays with one row a real example, in the order of
    the batches. With several processes: everyone's rows, one process after the other; `in_order` puts them right.

    Raises UserError where a batch does not divide by the number of devices, and for an empty dataset."""
    run, place = _compile(in_micro_batches(step, micro_batch), parallel, summed=False)
    state, axes = place(state), 2 if parallel == "pmap" else 1
    rows: list[Any] = []
    waiting: tuple[Any, np.ndarray] | None = None
    for batch in batches:
        output = run(state, batch)  # dispatched; the rows of the batch before are fetched meanwhile
        if waiting is not None:
            rows.append(_real_rows(*waiting, axes))
        waiting = output, batch.mask
        if progress is not None:
            progress(int(batch.mask.sum()))
    if waiting is not None:
        rows.append(_real_rows(*waiting, axes))
    if not rows:
        raise UserError("there is nothing to evaluate: the dataset is empty")
    return _from_all_processes(jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows))


def sum_batches(
    step: Step,
    state: Any,
    batches: Iterable[Any],
    *,
    parallel: Parallel = "jit",
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Runs a counting step over all batches, sums its integers on the devices of all processes, and returns the totals."""
    run, place = _compile(step, parallel, summed=True)
    state, totals = place(state), None
    for batch in batches:
        counts = run(state, batch)
        if totals is not None:
            jax.block_until_ready(totals)  # at most one batch under way, so that memory stays flat
            counts = jax.tree.map(jnp.add, totals, counts)
        totals = counts
        if progress is not None:
            progress(int(batch.mask.sum()))
    if totals is None:
        raise UserError("there is nothing to evaluate: the dataset is empty")
    return jax.tree.map(
        lambda leaf: np.asarray(leaf.addressable_data(0)).reshape(leaf.shape[parallel == "pmap" :]), totals
    )


def in_order(rows: Any, place: np.ndarray) -> Any:
    """Rows sorted by their places in the dataset."""
    order = np.argsort(place, kind="stable")
    return jax.tree.map(lambda leaf: leaf[order], rows)


@functools.lru_cache(maxsize=32)
def _compile(step: Step, parallel: Parallel, summed: bool) -> tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]:
    """The step over all devices of all processes, and where its state has to lie."""
    devices, local = jax.devices(), jax.local_device_count()
    if parallel == "pmap":
        reduced = (lambda state, batch: jax.lax.psum(step(state, batch), "data")) if summed else step
        mapped = jax.pmap(reduced, axis_name="data", in_axes=(None, 0), devices=devices)

        def run_pmap(state: Any, batch: Any) -> Any:
            _check_divides(batch, local)
            return mapped(state, jax.tree.map(lambda leaf: leaf.reshape(local, -1, *leaf.shape[1:]), batch))

        return run_pmap, lambda state: state
    mesh = Mesh(np.array(devices), ("data",))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, out_shardings=everywhere if summed else rows)

    def run_jit(state: Any, batch: Any) -> Any:
        _check_divides(batch, local)
        return jitted(state, jax.tree.map(functools.partial(jax.make_array_from_process_local_data, rows), batch))

    def place(state: Any) -> Any:
        if jax.process_count() == 1:
            return jax.device_put(state, everywhere)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(everywhere, np.asarray(leaf)), state)

    return run_jit, place


def _check_divides(batch: Any, devices: int) -> None:
    if len(batch.mask) % devices:
        raise UserError(f"a batch of {len(batch.mask)} does not divide over {devices} devices; use a multiple")


def _real_rows(output: Any, mask: np.ndarray, axes: int) -> Any:
    """This process's rows of an output, padding left out. `axes`: how many hold the batch (under pmap the devices come first)."""

    def local(leaf: Array) -> np.ndarray:
        shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        joined = np.concatenate([np.asarray(shard.data) for shard in shards])
        return joined.reshape(len(mask), *leaf.shape[axes:])

    return jax.tree.map(lambda leaf: local(leaf)[mask], output)


def _from_all_processes(rows: Any) -> Any:
    """Everyone's rows on every process; shares may differ in length, so they travel padded."""
    if jax.process_count() == 1:
        return rows
    lengths = multihost_utils.process_allgather(np.int32(len(jax.tree.leaves(rows)[0])))
    longest = int(lengths.max())

    def gather(leaf: np.ndarray) -> np.ndarray:
        padded = np.concatenate([leaf, np.zeros((longest - len(leaf), *leaf.shape[1:]), leaf.dtype)])
        everyone = multihost_utils.process_allgather(padded)
        return np.concatenate([part[:length] for part, length in zip(everyone, lengths, strict=True)])

    return jax.tree.map(gather, rows)


def extract_features(
    encode: Callable[[Any, Float[Array, "B S S 3"]], Float[Array, "B E"]],
    state: Any,
    batches: Iterable[Batch],
    *,
    parallel: Parallel = "jit",
    micro_batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "n E"]:
    """Features of all real examples, in the dataset's order; `encode(state, images)` is `encode_image` with an encoder as state."""
    return extract_labelled(
        encode, state, batches, parallel=parallel, micro_batch=micro_batch, progress=progress
    )["features"]  # fmt: skip


def extract_labelled(
    encode: Callable[[Any, Float[Array, "B S S 3"]], Any],
    state: Any,
    batches: Iterable[Batch],
    *,
    parallel: Parallel = "jit",
    micro_batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """`features` (whatever `encode` returns), `label` and `place` of all real examples, in the dataset's order, on every process."""
    rows = map_batches(_encoding(encode), state, batches, parallel=parallel, micro_batch=micro_batch, progress=progress)
    return in_order(rows, rows["place"])


@functools.lru_cache(maxsize=32)
def _encoding(encode: Callable[[Any, Any], Any]) -> Step:
    """The step that encodes a batch and keeps its labels and places."""

    def step(state: Any, batch: Batch) -> Any:
        features = encode(state, jnp.asarray(batch.image))
        return {"features": features, "label": jnp.asarray(batch.label), "place": jnp.asarray(batch.place)}

    return step
