"""Whether memory grows with a set: what is alive, on the devices and on the host, while batches stream past."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import jax
import numpy as np

WARM, BATCHES = 4, 24
"""Batches after which everything is compiled, and batches in all."""


def check_memory_does_not_grow(look: Callable, images: np.ndarray) -> None:
    """Runs `look(batches)` on the same images again and again; between two batches nothing more may be alive than before."""
    alive = []

    def stream():
        for number in range(BATCHES):
            if number == WARM:
                tracemalloc.start()  # of the host; what is compiled before is no matter
            elif number > WARM:
                alive.append((sum(array.nbytes for array in jax.live_arrays()), tracemalloc.get_traced_memory()[0]))
            yield images, np.ones(len(images), bool)

    try:
        look(stream())
    finally:
        tracemalloc.stop()
    devices, host = np.array(alive).T
    assert np.ptp(devices) == 0
    assert (
        np.ptp(host) < len(alive) * images.nbytes / 10
    )  # what Python keeps for itself; kept batches would be ten times that
