"""One evaluation loop under `jax.pmap` and under `jax.jit` with a sharded batch, on one host or many, with the same results.

Batches are padded to one shape and masked; large per-device batches are cut into micro-batches. The host prepares the next batch
while the devices work on this one, and never runs further ahead than that.

Many hosts: after `jax.distributed.initialize()` the devices of all processes work on one program. Every process feeds its own
share (`data.batches` sees to that); rows come back whole, on every process alike, and `measure` counts hits in them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from regcache_jax.core.errors import UserError
from regcache_jax.data.batches import Batch
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.forms import chip_of
from regcache_jax.evaluation.micro_batches import MicroBatch, Step, in_micro_batches, own_micro_batch
from regcache_jax.evaluation.watch import Watch

Parallel = Literal["jit", "pmap"]
AXIS = "data"

SERVED_ON = ("tpu",)
"""Where encoders run as serving programs, which compile longer and there cost less."""


def round_up(batch_size: int) -> int:
    """The next batch size that all devices of this process share evenly."""
    devices = jax.local_device_count()
    return -(-batch_size // devices) * devices


def map_batches(
    step: Step,
    state: PyTree,
    batches: Iterable[PyTree],
    *,
    parallel: Parallel = "jit",
    micro_batch: MicroBatch = None,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> PyTree:
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
    state: PyTree,
    batches: Iterable[PyTree],
    *,
    parallel: Parallel = "jit",
    micro_batch: MicroBatch = None,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
    alone: bool = False,
) -> Iterator[PyTree]:
    """What `map_batches` joins: this process's rows of each batch, when they are there. The next batch is under way by then. `alone`: on
    this process's own devices only, in its own time."""
    loop = Loop(step, state, parallel=parallel, micro_batch=micro_batch, alone=alone)
    return loop.rows(batches, progress, watch)


class Loop:
    """A step with its state; the program is made, and the state put on the devices, when the first batch is there. Both stay for the
    batches of later calls."""

    def __init__(
        self,
        step: Step,
        state: PyTree,
        *,
        parallel: Parallel = "jit",
        micro_batch: MicroBatch = None,
        alone: bool = False,
    ) -> None:
        self._step, self._state, self._parallel, self._micro_batch = step, state, parallel, micro_batch
        self._alone = alone
        self._run: Callable[[PyTree], PyTree] | None = None

    def rows(
        self, batches: Iterable[PyTree], progress: Callable[[int], None] | None = None, watch: Watch | None = None
    ) -> Iterator[PyTree]:
        """As `each_batch` gives them."""
        axes = 2 if self._parallel == "pmap" else 1
        waiting: tuple[PyTree, np.ndarray] | None = None
        for output, batch in self._dispatched(batches, watch):
            if waiting is not None:
                yield _real_rows(*waiting, axes)
            waiting = output, batch.mask
            if progress is not None:
                progress(int(batch.mask.sum()))
        if waiting is not None:
            yield _real_rows(*waiting, axes)

    def _dispatched(self, batches: Iterable[PyTree], watch: Watch | None) -> Iterator[tuple[PyTree, PyTree]]:
        """What the devices are making of batch after batch, and the batch."""
        for batch in batches:
            run = self._run = self._run or self._ready(batch)
            if watch is not None:
                watch.batch_is_there()
            output = run(batch)
            if watch is not None:
                watch.dispatched(output)
            yield output, batch
        if watch is not None:
            watch.finished()

    def _ready(self, batch: PyTree) -> Callable[[PyTree], PyTree]:
        """The program for batches like this one, with its state."""
        _check_divides(batch, jax.local_device_count())
        step, state, size = self._step, self._state, self._micro_batch
        state = _each_encoder(_prepared_here, state) if jax.default_backend() in SERVED_ON else state
        size = own_micro_batch(step, state, batch) if size == "auto" else size
        run, place = _compile(step, self._parallel, size, self._alone)
        return functools.partial(run, place(state))


def in_order(rows: PyTree, place: np.ndarray) -> PyTree:
    """Rows sorted by their places in the dataset."""
    order = np.argsort(place, kind="stable")
    return jax.tree.map(lambda leaf: leaf[order], rows)


@functools.lru_cache(maxsize=32)
def _compile(
    step: Step, parallel: Parallel, micro_batch: int | None, alone: bool
) -> tuple[Callable[[PyTree, PyTree], PyTree], Callable[[PyTree], PyTree]]:
    """The step over all devices of all processes (`alone`: of this one), and where its state has to lie."""
    devices, local = jax.local_devices() if alone else jax.devices(), jax.local_device_count()
    mesh = Mesh(np.array(devices), (AXIS,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())

    def place(state: PyTree) -> PyTree:
        if alone or jax.process_count() == 1:
            return jax.device_put(state, everywhere)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(everywhere, np.asarray(leaf)), state)

    if parallel == "pmap":
        sliced = in_micro_batches(step, micro_batch)

        def mapped(state: PyTree, batch: Batch) -> PyTree:
            return sliced(_sharing_measured_scales(state), batch)

        run_mapped = jax.pmap(mapped, axis_name=AXIS, in_axes=(None, 0), devices=devices)

        def run_pmap(state: PyTree, batch: PyTree) -> PyTree:
            _check_divides(batch, local)
            return run_mapped(state, jax.tree.map(lambda leaf: leaf.reshape(local, -1, *leaf.shape[1:]), batch))

        return run_pmap, place

    sliced = in_micro_batches(step, micro_batch, len(devices))
    jitted = jax.jit(sliced, out_shardings=rows)

    def run_jit(state: PyTree, batch: PyTree) -> PyTree:
        _check_divides(batch, local)
        return jitted(state, jax.tree.map(functools.partial(jax.make_array_from_process_local_data, rows), batch))

    return run_jit, place


def _sharing_measured_scales(state: PyTree) -> PyTree:
    """The state of a pmapped step: encoders in it measure a scale of a whole array over the arrays of all devices, as they do
    under jit, whose arrays span them."""

    def share(encoder: Encoder) -> Encoder:
        if encoder.scheme is None:
            return encoder
        return encoder.replace(scheme=dataclasses.replace(encoder.scheme, shared_over=AXIS))

    return _each_encoder(share, state)


def _prepared_here(encoder: Encoder) -> Encoder:
    """An encoder as its serving program, in the form for the devices of this process."""
    return encoder.prepared(chip_of(jax.local_devices()[0]))


def _each_encoder(change: Callable[[Encoder], Encoder], state: PyTree) -> PyTree:
    """The state with every encoder in it changed."""

    def changed(node: PyTree) -> PyTree:
        return change(node) if isinstance(node, Encoder) else node

    return jax.tree.map(changed, state, is_leaf=lambda node: isinstance(node, Encoder))


def _check_divides(batch: PyTree, devices: int) -> None:
    if len(batch.mask) % devices:
        raise UserError(f"a batch of {len(batch.mask)} does not divide over {devices} devices; use a multiple")


def _real_rows(output: PyTree, mask: np.ndarray, axes: int) -> PyTree:
    """This process's rows of an output, padding left out. `axes`: how many hold the batch (under pmap the devices come first)."""

    def local(leaf: Array) -> np.ndarray:
        shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        joined = np.concatenate([np.asarray(shard.data) for shard in shards])
        return joined.reshape(len(mask), *leaf.shape[axes:])

    return jax.tree.map(lambda leaf: local(leaf)[mask], output)


def concatenate(rows: Sequence[PyTree]) -> PyTree:
    """Rows of several batches as one tree."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def from_all_processes(rows: PyTree) -> PyTree:
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
    encode: Callable[[PyTree, Float[Array, "B Y X 3"]], Float[Array, "B E"]],
    state: PyTree,
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
    encode: Callable[[PyTree, Float[Array, "B Y X 3"]], PyTree],
    state: PyTree,
    batches: Iterable[Batch],
    *,
    parallel: Parallel = "jit",
    micro_batch: MicroBatch = None,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> dict[str, np.ndarray]:
    """`features`, whether they are `finite`, `label` and `place` of all real examples, in the dataset's order, on every process."""
    rows = map_batches(
        encoding(encode), state, batches,
        parallel=parallel, micro_batch=micro_batch, progress=progress, watch=watch,
    )  # fmt: skip
    return in_order(rows, rows["place"])


@functools.lru_cache(maxsize=32)
def encoding(encode: Callable[[PyTree, PyTree], PyTree]) -> Step:
    """The step that encodes a batch, notes which rows are finite, and keeps its labels and places."""

    def step(state: PyTree, batch: Batch) -> PyTree:
        features = encode(state, jnp.asarray(batch.image))
        finite = jnp.isfinite(features).all(axis=tuple(range(1, features.ndim)))
        label, place = jnp.asarray(batch.label), jnp.asarray(batch.place)
        return {"features": features, "finite": finite, "label": label, "place": place}

    return step
