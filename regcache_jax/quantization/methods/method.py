"""What a method is: up to three steps on the way from a float encoder to a quantised one, any of which may be absent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.kernels import Rounder

Batches = Sequence[Float[Array | np.ndarray, "_ _ _ 3"]]
"""The calibration set, which may be gone through several times."""


@dataclasses.dataclass(frozen=True)
class Method:
    """`prepare` changes the float encoder and not its function, its plan included (same features, tokens deleted alike);
    `rounder` says how kernels become integers (None: to the nearest); `finish` corrects the quantised encoder, given the
    float one (`rounds_again`: its kernels, too, so that nothing else may round them). `summary` is one line for a table."""

    name: str
    summary: str
    prepare: Callable[[Encoder, Batches, Scheme], Encoder] | None = None
    rounder: Callable[[Encoder, Batches, Scheme], Rounder] | None = None
    finish: Callable[[Encoder, Encoder, Batches], Encoder] | None = None
    rounds_again: bool = False
