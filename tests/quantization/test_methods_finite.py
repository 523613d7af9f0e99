"""Calibration on pictures that say little, of an encoder with dead parts: every method gives numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.names import from_names, to_names
from regcache_jax.core.scheme import Scheme
from regcache_jax.data.batches import dullness
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.quantization.methods import erq
from regcache_jax.quantization.methods.gptq import compensate
from regcache_jax.quantization.methods.table import METHODS
from regcache_jax.quantization.quantize import quantize


@pytest.fixture(scope="module")
def pruned():
    """An encoder with neurons that are always zero, a dead head, a dead norm channel, and a block whose MLP was removed."""
    encoder = small.encoder("siglip")
    leaves = {name: np.array(leaf) for name, leaf in to_names(encoder.params).items()}
    blocks = {
        name.removeprefix("image/blocks/"): leaf for name, leaf in leaves.items() if name.startswith("image/blocks/")
    }
    blocks["mlp/fc1/kernel"][:, :, :10] = blocks["mlp/fc1/bias"][:, :10] = blocks["mlp/fc2/kernel"][:, :10] = 0
    for name in ("query", "key", "value"):
        blocks[f"attention/{name}/kernel"][:, :, 0] = blocks[f"attention/{name}/bias"][:, 0] = 0
    blocks["norm1/scale"][:, 5] = blocks["norm1/bias"][:, 5] = 0
    for name, leaf in blocks.items():
        leaf[2] *= not name.startswith("mlp/")
    return encoder.replace(params=from_names({name: jnp.asarray(leaf) for name, leaf in leaves.items()}))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_finite_features_when_calibrated_on_black_pictures(pruned, method):
    black = jnp.full((4, 16, 16, 3), -1.0)
    quantized = quantize(pruned, black, Scheme(method=method))
    assert np.isfinite(jax.jit(encode_image)(quantized, small.images(3))).all()


def test_a_kernel_is_left_alone_where_the_moments_say_nothing():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    indefinite = -jnp.eye(6)
    found = erq.reduce_activation_error(indefinite, jnp.eye(6), kernel, jnp.float32(0.01))
    np.testing.assert_array_equal(found, kernel)
    scale = jnp.full((1, 4), 0.05)
    nearest = jnp.round(kernel / scale).astype(jnp.int8)
    broken = jnp.full((6, 6), jnp.nan)
    np.testing.assert_array_equal(compensate(kernel, scale, broken, 8), jnp.clip(nearest, -127, 127))


def test_pictures_that_teach_nothing_are_said():
    varied = np.asarray(small.images(3))
    assert dullness(varied) is None and dullness(varied[:1]) is None
    assert "all pictures are the same (2)" in dullness(varied[[0, 0]])
    assert "every picture is of one colour (3)" in dullness(np.broadcast_to(varied[:, :1, :1], varied.shape))
