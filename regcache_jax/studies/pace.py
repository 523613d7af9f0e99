"""How long work will take, before it begins: pictures that pass through an encoder, times what one takes on this machine.

One block is run for a moment. What else the machine does, reading and decoding pictures and methods that fit something are left out, so
what is said is a range, from that to `SLOWER` times as much. How often pictures pass was counted (`benchmarks/search.py`; block operations
of the demo)."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp

from regcache_jax.core.scheme import SITES
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.encoders.blocks import run_blocks
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.rounding import Run

PICTURES, TIMES = 4, 3
"""That are run at once, and how often."""
COMPILING = 3.0
"""Seconds until a program is compiled, on a CPU."""
SLOWER = 3
"""Times the estimate: the upper end of what is said. A choice: on a machine in use by others, work has taken four times as long."""
WORTH_SAYING = 60.0
"""Seconds; what takes less is not announced."""
USUAL_TRIALS = 80
"""Of a search with the usual grid; the demo's have 76 to 90."""
PASSES_OF_A_TRIAL = 0.35
"""How often a trial runs each working picture through all blocks, on average: most see a sixth of the pictures, and half of the blocks."""
REMEDIES = 25
"""Runs of the blocks that stakes and remedies take on each picture."""


class Pace:
    """Seconds that work takes with one encoder, on the devices of this process; measured when they are first asked for."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.num_blocks = encoder, encoder.spec.image.blocks.num_blocks

    @functools.cached_property
    def picture(self) -> float:
        """Seconds a picture."""
        return seconds_a_picture(self.encoder) / len(jax.local_devices())

    def passes(self, pictures: float, programs: int = 1) -> float:
        """So many pictures once through the encoder, by programs that must be compiled."""
        return pictures * self.picture + programs * COMPILING

    def search(self, pictures: int, config: SearchConfig) -> float:
        """A search on so many reference pictures."""
        trials = min(USUAL_TRIALS, config.max_trials or USUAL_TRIALS)
        working = pictures * (1 - config.verify_share)
        seconds = self.passes(working * (4 + trials * PASSES_OF_A_TRIAL), 6)
        return seconds if config.max_minutes is None else min(seconds, 60 * config.max_minutes)

    def sensitivity(self, pictures: int) -> float:
        """One site of one block at a time: of the blocks half are run, on average."""
        return self.passes(pictures * len(SITES) * (self.num_blocks + 1) / 2, 2)

    def stakes(self, pictures: int) -> float:
        """What outliers cost, and what remedies leave."""
        return self.passes(pictures * REMEDIES, 3)

    def cells(self, number: int, calibration: int, scoring: int) -> float:
        """So many cells of a grid: calibrated on some pictures, scored on others."""
        return number * self.passes(calibration + scoring, 2)


def seconds_a_picture(encoder: Encoder) -> float:
    """Seconds that a picture takes in all blocks, from the median of a few runs of the first block."""
    spec = encoder.spec.image
    first = jax.tree.map(lambda leaf: leaf[:1], encoder.params.image.blocks)
    run = Run(dataclasses.replace(spec.blocks, num_blocks=1), encoder.scheme, spec.protected, (spec.grid, spec.grid))
    hidden = jnp.ones((PICTURES, spec.num_tokens, spec.blocks.width), encoder.dtype)
    program = jax.jit(lambda blocks, hidden: run_blocks(blocks, hidden, run).hidden)
    program(first, hidden).block_until_ready()
    seconds = []
    for _ in range(TIMES):
        began = time.monotonic()
        program(first, hidden).block_until_ready()
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds) * spec.blocks.num_blocks / PICTURES


def forecast(seconds: float, bounded_by: str) -> str | None:
    """The sentence that goes before long work: how long, where, and what bounds it. None before short work."""
    if seconds < WORTH_SAYING:
        return None
    devices, unit, word = jax.local_devices(), *((60, "minutes") if seconds < 5400 else (3600, "hours"))
    longest = f"{SLOWER * seconds / unit:.0f} {word}"
    return f"{seconds / unit:.0f} to {longest} on {len(devices)} x {devices[0].device_kind}; {bounded_by}"
