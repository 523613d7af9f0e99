"""Which process works on which partition, without anybody who says so.

A partition is free when it has no receipt and nobody holds its lock. On a disk the system lets go of a lock when its holder ends in
whatever way, so what a killed process had claimed is free at once. A store of objects (gs://) has no locks: there every process begins
at a place of its own, and now and then two make the same partition, which costs time and gives the same files.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import NamedTuple

import jax

from regcache_jax.core.errors import UserError
from regcache_jax.embedding.layout import Layout
from regcache_jax.files.lock import held


class Claim(NamedTuple):
    """A partition that is this process's until it lets go."""

    number: int
    let_go: contextlib.ExitStack


def free(layout: Layout, own: set[int]) -> Iterator[Claim]:
    """Claims one free partition after the other until there is none; `own` are those that this process holds already."""
    for number in _order(layout):
        if number in own or layout.receipt(number).exists():
            continue
        holding = contextlib.ExitStack()
        try:
            holding.enter_context(held(layout.receipt(number)))
        except UserError:  # another process makes it
            continue
        if layout.receipt(number).exists():  # it was finished meanwhile
            holding.close()
            continue
        yield Claim(number, holding)


def sweep(layout: Layout) -> None:
    """Removes the locks of finished partitions whose makers were killed between the receipt and the end of their claim."""
    there = layout.receipt(0).parent
    for lock in there.glob(".*.lock"):
        with contextlib.suppress(UserError), held(there / lock.name[1:].removesuffix(".lock")):
            pass


def _order(layout: Layout) -> list[int]:
    """The partitions that are not done, those first that no other process begins with."""
    done = layout.done()
    left = [number for number in range(layout.partitions) if number not in done]
    if jax.process_count() > 1:
        return sorted(left, key=lambda number: (number - jax.process_index()) % jax.process_count())
    if "://" in str(layout.folder):
        random.Random(os.urandom(8)).shuffle(left)
    return left
