"""How a site's input is rounded where no calibration stands behind it."""

import jax.numpy as jnp
import numpy as np
import pytest

from regcache_jax.core.spec import Protected
from regcache_jax.encoders.rounding import scale_of_others, token_groups, token_scale

PROTECTED = Protected(1, 2)


@pytest.mark.parametrize("shape", [(5, 7, 4), (5, 7, 2, 3)], ids=["channels", "heads"])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_picture_has_the_scales_that_calibration_on_its_others_would_give(shape, grouped):
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    inputs[:, 0] *= 10  # a class token
    inputs[3] = 0
    others = np.array([[0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 0]], bool)
    groups = token_groups(7, PROTECTED) if grouped else None
    found = np.asarray(scale_of_others(jnp.asarray(inputs), jnp.asarray(others), 8, groups))
    assert found.ndim == inputs.ndim and found.shape[:2] == (5, 7 if grouped else 1)
    parts = [slice(0, 1), slice(1, 3), slice(3, 7)] if grouped else [slice(0, 7)]
    for row, give in enumerate(others):
        largest = np.array([np.abs(inputs[give][:, part]).max() for part in parts])
        scale = jnp.asarray(np.where(largest > 0, largest / 127, 1.0), jnp.float32)
        expected = token_scale(scale if grouped else scale[0], 7, PROTECTED)
        np.testing.assert_allclose(found[row].ravel(), np.asarray(expected).ravel(), rtol=1e-6)
