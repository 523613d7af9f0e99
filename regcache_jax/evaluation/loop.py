"""One evaluation loop under `jax.pmap` and under `jax.jit` with a sharded batch, on one host or many, with the same results.

Batches are padded to one shape and masked; large per-device batches are cut into micro-batches. The host prepares the next batch
while the devices work on this one, and never runs further ahead than that.

Many hosts: after `jax.distributed.initialize()` the devices of all processes work on one program. Every process feeds its own
share (`data.batches` sees to that); rows come back whole, on every process alike, and `measure` counts hits in them.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import ImageSpec
from regcache_jax.data.batches import Batch
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.tpu.ask import estimates
from regcache_jax.tpu.batches import cheapest, sweep

Parallel = Literal["jit", "pmap"]
MicroBatch = int | Literal["auto"] | None
"""Rows a device works on at a time: so many, as many as are cheapest there, or all of its share."""
AXIS = "data"
Step = Callable[[Any, Any], Any]
"""A pure function of (state, batch); a batch is a `Batch` or any named tuple of arrays with a `mask`. What it returns has the
batch's axis in front."""

Compile = Callable[..., Any]
"""From a step and the shapes of its arguments to a compiled program."""

SERVED_ON = ("tpu",)
"""Where encoders run as serving programs, which compile longer and there cost less."""
CACHE_BYTES = 10 << 20
"""What a CPU's cache may be asked to hold: found with a B/16, see docs/evaluation.md."""


class Watch:
    """Measures how long the devices had nothing to do because the host had no batch ready."""

    def __init__(self) -> None:
        self.began = self.ready = time.perf_counter()
        self.waited = 0.0
        self._waiter = concurrent.futures.ThreadPoolExecutor(1)
        self._last: concurrent.futures.Future[float] | None = None

    def batch_is_there(self) -> None:
        """Called when the host has made a batch: what passed since the devices were done with the one before is waiting."""
        now = time.perf_counter()
        if self._last is None:
            self.waited += now - self.ready
        elif self._last.done():
            self.waited += max(0.0, now - self._last.result())

    def dispatched(self, output: Any) -> None:
        """Called with what the devices are making; another thread notes when it is there."""
        self._last = self._waiter.submit(_when_ready, output)

    def finished(self) -> None:
        """Called after the last batch. The watch may go on with another dataset."""
        if self._last is not None:
            self.ready, self._last = self._last.result(), None

    @property
    def elapsed(self) -> float:
        """Seconds from the start to the last result."""
        return self.ready - self.began

    @property
    def share(self) -> float:
        """Fraction of the time spent waiting for the host (the first batch, which nothing hides, included)."""
        return self.waited / self.elapsed if self.elapsed else 0.0


def _when_ready(output: Any) -> float:
    jax.block_until_ready(output)
    return time.perf_counter()


@functools.lru_cache(maxsize=32)  # one closure a step, so that JAX finds what it has compiled
def in_micro_batches(step: Step, micro_batch: int | None, shares: int = 1) -> Step:
    """The same step, run over slices one after the other, so that temporaries stay small: `micro_batch` rows of every device's
    share of the batch. `shares`: devices over which the rows that the step sees are spread (1 under pmap, whose step sees those of
    one device). Outputs come back in the batch's order."""

    def sliced(state: Any, batch: Any) -> Any:
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


def cheapest_micro_batch(step: Step, state: Any, batch: Any, compile: Compile | None = None) -> int | None:
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


def _compile_here(step: Step, *shapes: Any) -> Any:
    return jax.jit(step).lower(*shapes).compile()


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
    micro_batch: MicroBatch = None,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> Any:
    """Runs a per-example step over all batches; returns its outputs as NumPy arrays with one row a real example, in the order of
    the batches. With several processes: everyone's rows, one process after the other; `in_order` puts them right.

    Raises UserError where a batch does not divide by the number of devices, and for an empty dataset."""
    rows = list(
        each_batch(step, state, batches, parallel=parallel, micro_batch=micro_batch, progress=progress, watch=watch)
    )
    if not rows:
        raise UserError("there is nothing to evaluate: the dataset is empty")
    return from_all_processes(concatenate(rows))


def each_batch(
    step: Step,
    state: Any,
    batches: Iterable[Any],
    *,
    parallel: Parallel = "jit",
    micro_batch: MicroBatch = None,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> Iterator[Any]:
    """What `map_batches` joins: this process's rows of each batch, when they are there. The next batch is under way by then."""
    axes = 2 if parallel == "pmap" else 1
    waiting: tuple[Any, np.ndarray] | None = None
    for output, batch in _run(step, state, batches, parallel, micro_batch, watch):
        if waiting is not None:
            yield _real_rows(*waiting, axes)
        waiting = output, batch.mask
        if progress is not None:
            progress(int(batch.mask.sum()))
    if waiting is not None:
        yield _real_rows(*waiting, axes)


def _run(
    step: Step,
    state: Any,
    batches: Iterable[Any],
    parallel: Parallel,
    micro_batch: MicroBatch,
    watch: Watch | None,
) -> Iterator[tuple[Any, Any]]:
    """Dispatches batch after batch; yields what the devices are making and the batch it is made from."""
    run = None
    for batch in batches:
        if run is None:
            _check_divides(batch, jax.local_device_count())
            state = _each_encoder(Encoder.prepared, state) if jax.default_backend() in SERVED_ON else state
            size = _own_micro_batch(step, state, batch) if micro_batch == "auto" else micro_batch
            run, place = _compile(step, parallel, size)
            state = place(state)
        if watch is not None:
            watch.batch_is_there()
        output = run(state, batch)
        if watch is not None:
            watch.dispatched(output)
        yield output, batch
    if watch is not None:
        watch.finished()


def _own_micro_batch(step: Step, state: Any, batch: Any) -> int | None:
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


def in_order(rows: Any, place: np.ndarray) -> Any:
    """Rows sorted by their places in the dataset."""
    order = np.argsort(place, kind="stable")
    return jax.tree.map(lambda leaf: leaf[order], rows)


@functools.lru_cache(maxsize=32)
def _compile(
    step: Step, parallel: Parallel, micro_batch: int | None
) -> tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]:
    """The step over all devices of all processes, and where its state has to lie."""
    devices, local = jax.devices(), jax.local_device_count()
    mesh = Mesh(np.array(devices), (AXIS,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())

    def place(state: Any) -> Any:
        if jax.process_count() == 1:
            return jax.device_put(state, everywhere)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(everywhere, np.asarray(leaf)), state)

    if parallel == "pmap":
        sliced = in_micro_batches(step, micro_batch)

        def mapped(state: Any, batch: Batch) -> Any:
            return sliced(_sharing_measured_scales(state), batch)

        run_mapped = jax.pmap(mapped, axis_name=AXIS, in_axes=(None, 0), devices=devices)

        def run_pmap(state: Any, batch: Any) -> Any:
            _check_divides(batch, local)
            return run_mapped(state, jax.tree.map(lambda leaf: leaf.reshape(local, -1, *leaf.shape[1:]), batch))

        return run_pmap, place

    sliced = in_micro_batches(step, micro_batch, len(devices))
    jitted = jax.jit(sliced, out_shardings=rows)

    def run_jit(state: Any, batch: Any) -> Any:
        _check_divides(batch, local)
        return jitted(state, jax.tree.map(functools.partial(jax.make_array_from_process_local_data, rows), batch))

    return run_jit, place


def _sharing_measured_scales(state: Any) -> Any:
    """The state of a pmapped step: encoders in it measure a scale of a whole array over the arrays of all devices, as they do
    under jit, whose arrays span them."""

    def share(encoder: Encoder) -> Encoder:
        if encoder.scheme is None:
            return encoder
        return encoder.replace(scheme=dataclasses.replace(encoder.scheme, shared_over=AXIS))

    return _each_encoder(share, state)


def _each_encoder(change: Callable[[Encoder], Encoder], state: Any) -> Any:
    """The state with every encoder in it changed."""

    def changed(node: Any) -> Any:
        return change(node) if isinstance(node, Encoder) else node

    return jax.tree.map(changed, state, is_leaf=lambda node: isinstance(node, Encoder))


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


def concatenate(rows: Sequence[Any]) -> Any:
    """Rows of several batches as one tree."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def from_all_processes(rows: Any) -> Any:
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
    micro_batch: MicroBatch = None,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> Float[np.ndarray, "n E"]:
    """Features of all real examples, in the dataset's order; `encode(state, images)` is `encode_image` with an encoder as state."""
    return extract_labelled(
        encode, state, batches, parallel=parallel, micro_batch=micro_batch, progress=progress, watch=watch
    )["features"]


def extract_labelled(
    encode: Callable[[Any, Float[Array, "B S S 3"]], Any],
    state: Any,
    batches: Iterable[Batch],
    *,
    parallel: Parallel = "jit",
    micro_batch: MicroBatch = None,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """`features`, whether they are `finite`, `label` and `place` of all real examples, in the dataset's order, on every process."""
    rows = map_batches(
        encoding(encode), state, batches,
        parallel=parallel, micro_batch=micro_batch, progress=progress, watch=watch,
    )  # fmt: skip
    return in_order(rows, rows["place"])


@functools.lru_cache(maxsize=32)
def encoding(encode: Callable[[Any, Any], Any]) -> Step:
    """The step that encodes a batch, notes which rows are finite, and keeps its labels and places."""

    def step(state: Any, batch: Batch) -> Any:
        features = encode(state, jnp.asarray(batch.image))
        finite = jnp.isfinite(features).all(axis=tuple(range(1, features.ndim)))
        label, place = jnp.asarray(batch.label), jnp.asarray(batch.place)
        return {"features": features, "finite": finite, "label": label, "place": place}

    return step
