"""The partitions that one process has in hand: each from its claim, over its batches, to its files.

Two are in hand where one follows the other: the next one's batches are on their way when the last rows of this one come.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from regcache_jax.data.batches import Batch, Share, batches
from regcache_jax.data.parts import Part
from regcache_jax.embedding.claims import free
from regcache_jax.embedding.layout import Described, Layout
from regcache_jax.embedding.partition import EncodeTexts, Partition
from regcache_jax.embedding.tally import Tally
from regcache_jax.evaluation.loop import Parallel, each_batch
from regcache_jax.evaluation.micro_batches import Step
from regcache_jax.evaluation.rows import check_rows
from regcache_jax.evaluation.watch import Watch
from regcache_jax.files.events import Events, nobody
from regcache_jax.models.folder import Model


class Running(NamedTuple):
    """How one process works. `batch_size`: pictures a step; `workers`: processes that decode (0: threads). `tell` hears of what was left
    out, `moved` of pictures done, of how many, with a note, `events` of the start, of each partition and of the end."""

    batch_size: int = 32
    parallel: Parallel = "jit"
    workers: int = 0
    tell: Callable[[str], None] = lambda line: None
    moved: Callable[[int, int, str], None] = lambda done, total, note: None
    events: Events = nobody


class Making(NamedTuple):
    """What is made of a partition. `belongs_to`: the hash of what the set is; `allowed`: share of unreadable pictures; `encode_texts`: for
    captions, where they are asked for."""

    described: Described
    belongs_to: str
    allowed: float
    batch_size: int
    encode_texts: EncodeTexts | None


class Hand:
    """This process's partitions, oldest first."""

    def __init__(
        self, model: Model, parts: Sequence[Part], layout: Layout, making: Making, running: Running, tally: Tally
    ) -> None:
        self._model, self._parts, self._layout = model, parts, layout
        self._making, self._running, self._tally = making, running, tally
        self._held: collections.deque[Partition] = collections.deque()

    def close(self) -> None:
        """Lets go of what is not written."""
        for partition in self._held:
            partition.give_up()

    def embed_free(self, step: Step, watch: Watch) -> bool:
        """Embeds one free partition after the other until there is none; whether there was one."""
        encoder = self._model.encoder
        worked = False
        for rows in each_batch(
            step, encoder, self._batches(),
            parallel=self._running.parallel, micro_batch="auto", watch=watch, alone=True,
        ):  # fmt: skip
            worked = True
            self._write()  # before this one there may be partitions without a batch
            first = self._held[0]
            check_rows(encoder, rows, first.dataset, encoder.spec.preprocessing)
            first.add(rows["features"], rows["place"])
            self._tally.add(first.claim.number, len(rows["place"]))
            self._write()
        self._write()
        return worked

    def _batches(self) -> Iterator[Batch]:
        """The batches of one free partition after the other."""
        making, size = self._making, self._making.batch_size
        for claim in free(self._layout, own := {each.claim.number for each in self._held}):
            with contextlib.ExitStack() as failed:
                failed.push(claim.let_go)
                dataset = self._parts[claim.number].open()
                partition = Partition(claim, dataset, making.described, making.allowed, size)
                failed.pop_all()
            for note in dataset.notes:
                self._running.tell(note)
            self._tally.opened(claim.number, len(dataset))
            own.add(claim.number)
            self._held.append(partition)
            yield from batches(
                dataset, self._model.preprocess, size,
                indices=partition.indices, share=Share(0, 1), missing=partition.missing, workers=self._running.workers,
            )  # fmt: skip

    def _write(self) -> None:
        """Writes the partitions whose last batch has come."""
        while self._held and not self._held[0].left:
            partition = self._held[0]
            number = partition.claim.number
            written = partition.write(self._layout, self._making.belongs_to, self._making.encode_texts)
            self._held.popleft()
            self._tally.finished(number, written["unreadable"])
            seconds = round(time.monotonic() - partition.began, 3)
            self._running.events("partition", number=number, seconds=seconds, **written)
