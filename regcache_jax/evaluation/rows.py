"""What an encoder gives for every picture of a dataset, computed in chunks that a work folder keeps: an evaluation that is killed
goes on with the first chunk that is not there, and ends with the same rows.

Works on one process and on many; every process ends with all rows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Int

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Preprocessing
from regcache_jax.data.batches import Missing, batches
from regcache_jax.data.dataset import Dataset
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.finite import not_finite
from regcache_jax.encoders.identity import image_identity
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.evaluation.loop import (
    Parallel,
    concatenate,
    each_batch,
    encoding,
    from_all_processes,
    in_order,
    round_up,
)
from regcache_jax.evaluation.micro_batches import MicroBatch
from regcache_jax.evaluation.watch import Watch
from regcache_jax.files.distributed import everyone
from regcache_jax.files.results import versions
from regcache_jax.files.store import Arrays, Store

ROWS_FOLDER = "rows"
"""Where the chunks lie in a work folder."""

GIVE_UP = 100
"""Unreadable pictures after which a run ends at once; fewer are all listed at its end, so that one run tells of all."""


class Setting(NamedTuple):
    """How datasets are run through encoders. `batch_size`: pictures a step and process; `workers`: processes that decode (0:
    threads); `allow_missing`: pictures that may be unreadable; `chunk`: pictures, about, that are lost when a run is killed."""

    batch_size: int = 32
    parallel: Parallel = "jit"
    micro_batch: MicroBatch = "auto"
    workers: int = 0
    allow_missing: int = 0
    workdir: epath.PathLike | None = None
    chunk: int = 1024


class Rows(NamedTuple):
    """The rows of all pictures that could be read, in the dataset's order, their classes (-1: none) and places, and a message
    for each of the other pictures."""

    features: np.ndarray
    labels: Int[np.ndarray, "n"]
    places: Int[np.ndarray, "n"]
    missing: list[str]


def encode_dataset(
    encode: Callable[[Encoder, Any], Any],
    encoder: Encoder,
    dataset: Dataset,
    preparation: Preprocessing,
    setting: Setting,
    *,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
    tell: Callable[[str], None] | None = None,
) -> Rows:
    """Rows of `encode(encoder, pictures)` for a whole dataset, its pictures prepared as `preparation` says.

    `progress` hears of pictures as they are done, `tell` of chunks that are damaged. Raises UserError for an empty dataset, for more
    unreadable pictures than may be missing, and for rows that are not finite."""
    if not len(dataset):
        raise UserError("there is nothing to evaluate: the dataset is empty")
    size = round_up(setting.batch_size)
    step = size * jax.process_count()
    chunk = -(-setting.chunk // step) * step
    made_from = [
        encode.__name__, image_identity(encoder), dataclasses.asdict(preparation), dataset.identity(),
        chunk, step, setting.parallel, setting.micro_batch, jax.default_backend(), versions(),
    ]  # fmt: skip
    store = Store(setting.workdir, ROWS_FOLDER, made_from)
    starts = range(0, len(dataset), chunk)
    done = _stored(store, starts, tell)
    missing = Missing(max(setting.allow_missing, GIVE_UP) if jax.process_count() == 1 else len(dataset))
    for rows in done.values():
        for place, fault in zip(rows.pop("missing").tolist(), rows.pop("faults").tolist(), strict=True):
            missing.add(place, fault)
        if progress is not None:
            progress(len(rows["place"]))
    left = [start for start in starts if start not in done]
    indices = [place for start in left for place in range(start, min(start + chunk, len(dataset)))]
    made = each_batch(
        encoding(encode), encoder,
        batches(dataset, functools.partial(preprocess, spec=preparation), size, indices=indices, missing=missing, workers=setting.workers),
        parallel=setting.parallel, micro_batch=setting.micro_batch, progress=progress, watch=watch,
    )  # fmt: skip
    for start in left:
        count = -(-min(chunk, len(dataset) - start) // step)
        rows = from_all_processes(concatenate(list(itertools.islice(made, count))))
        check_rows(encoder, rows, dataset, preparation)
        faults = _faults_of_all(missing, start, start + chunk, max(setting.allow_missing, GIVE_UP))
        done[start] = in_order(rows, rows["place"])
        listed = {"missing": np.array(list(faults), np.int32), "faults": np.array(list(faults.values()), str)}
        store.write(f"{start:09d}", {**done[start], **listed})
    for _ in made:  # there is no batch left; the loop ends its own way
        pass
    whole = concatenate([done[start] for start in starts])
    if not len(whole["place"]):
        raise UserError(f"no picture can be read (of {len(dataset):,}); the first: {missing.messages[0]}")
    if len(missing.faults) > setting.allow_missing:
        raise UserError(
            f"{len(missing.faults)} of {counted(len(dataset), 'picture')} cannot be read and {setting.allow_missing} may be missing "
            f"(--allow-missing {len(missing.faults)} leaves them out): {'; '.join(missing.messages)}"
        )
    return Rows(whole["features"], whole["label"], whole["place"], missing.messages)


def check_rows(encoder: Encoder, rows: dict[str, np.ndarray], dataset: Dataset, preparation: Preprocessing) -> None:
    """Takes `finite` out of some rows. Raises UserError that says where it begins, for a picture whose row is not."""
    if not (finite := rows.pop("finite")).all():
        example = dataset[int(rows["place"][np.argmin(finite)])]
        raise not_finite(encoder, preprocess(example.image, preparation)[None], example.name)


def _stored(store: Store, starts: range, tell: Callable[[str], None] | None) -> dict[int, Arrays]:
    """The chunks that are there and whole for all processes, by the first place."""
    if store.folder is None:
        return {}
    found = {start: store.read(f"{start:09d}") for start in starts}
    damaged = [start for start, rows in found.items() if rows is None and store.damaged(f"{start:09d}")]
    if damaged and tell is not None:
        tell(f"{store.folder}: {len(damaged)} damaged, read again: {', '.join(f'{start:09d}' for start in damaged)}")
    sound = everyone({start: rows is not None for start, rows in found.items()})
    return {
        start: rows for start, rows in found.items()
        if rows is not None and all(process[str(start)] for process in sound)
    }  # fmt: skip


def _faults_of_all(missing: Missing, first: int, end: int, allowed: int) -> dict[int, str]:
    """The unreadable pictures of a chunk that any process has met, put with this process's own. Raises UserError, in all
    processes alike, where there are too many."""
    own = {place: fault for place, fault in missing.faults.items() if first <= place < end}
    if jax.process_count() == 1:
        return own
    faults = {int(place): fault for process in everyone(own) for place, fault in process.items()}
    missing.faults.update(faults)
    known = Missing(allowed)
    for place in sorted(missing.faults):
        if place < end:  # later ones are this process's alone, met while it made the next batch
            known.add(place, missing.faults[place])
    return {place: faults[place] for place in sorted(faults)}
