"""What a method is: up to three steps on the way from a float encoder to a quantised one, any of which may be absent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.kernels import Rounder
from regcache_jax.quantization.methods.observed import Need, Observed

Prepare = Callable[[Encoder, Observed, Scheme], Encoder]
"""Changes the float encoder and not its function, its plan included: same features, tokens deleted alike."""
Round = Callable[[Encoder, Observed, Scheme], Rounder]
"""Says how the float encoder's kernels become integers."""
Finish = Callable[[Encoder, Encoder, Observed], Encoder]
"""Corrects the quantised encoder (the second), given the float one."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method either prepares, or rounds and finishes (`round` None: to the nearest; `rounds_again`: finishing rounds the kernels, too,
    so that nothing else may round them). `needs`: what it wants to know of the calibration set, which is gathered in one pass
    over the encoder as it stands before that step. `passes`: how often it goes through the whole set again (`images`), for who is told
    how far it is. `summary` is one line for a table."""

    name: str
    summary: str
    needs: tuple[Need, ...] = ()
    prepare: Prepare | None = None
    round: Round | None = None
    finish: Finish | None = None
    rounds_again: bool = False
    passes: int = 0
