"""Float32 means float32, on every chip.

By default JAX rounds what products of float32 read, to bfloat16 on a TPU and to TF32 on a GPU: references, calibrations and methods'
least squares would be of that precision, without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def float32_products() -> Iterator[None]:
    """Products of float32 numbers that are traced or run within are as precise as float32 is; those of bfloat16 and of integers are what
    they were. Who has chosen otherwise (`jax.default_matmul_precision`, JAX_DEFAULT_MATMUL_PRECISION) has what was chosen."""
    if jax.config.jax_default_matmul_precision is not None:  # type: ignore[attr-defined]
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield
