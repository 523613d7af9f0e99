"""How long the devices had nothing to do because the host had no batch ready."""

from __future__ import annotations

import concurrent.futures
import time

import jax
from jaxtyping import PyTree


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

    def dispatched(self, output: PyTree) -> None:
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


def _when_ready(output: PyTree) -> float:
    jax.block_until_ready(output)
    return time.perf_counter()
