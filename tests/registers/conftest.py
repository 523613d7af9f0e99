"""A random encoder with a trained register, and pictures for it: what several files here look into."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from regcache_jax.encoders.encoder import Encoder, init_params
from regcache_jax.studies.planted import planted_spec


@pytest.fixture(scope="module")
def encoder():
    spec = planted_spec(width=16, num_blocks=3, num_heads=2, image_size=12, patch_size=4, trained_registers=1)
    return Encoder(init_params(spec, jax.random.key(0)), spec=spec)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(7, 12, 12, 3)).astype(np.float32)
