"""Whoever rounds: the same integers, scales and gradients, bit by bit."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.ops.integers import largest_integer
from regcache_jax.ops.integers import quantize as to_integers
from regcache_jax.ops.rounders import ROUNDERS, SETTING
from regcache_jax.quantization.quantize import quantize


def rounded(name: str, inputs: np.ndarray, bits: int, axes: tuple[int, ...], scale: jax.Array | None):
    integers, used, gradient = ROUNDERS[name](jnp.asarray(inputs), largest_integer(bits), axes, scale)
    return integers, used, gradient(jnp.asarray(inputs[::-1] + 1))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    axes=st.sampled_from([(0, 1), (1,), (0,)]),
    magnitude=st.floats(-12, 12),
    range_=st.none() | st.floats(0.1, 3.0),
    silent=st.booleans(),
)
def test_every_rounder_gives_the_same_bits(seed, bits, axes, magnitude, range_, silent):
    inputs = np.float32(10.0**magnitude) * np.random.default_rng(seed).standard_normal((6, 9), np.float32)
    inputs[2] *= not silent  # an all-zero row
    largest = largest_integer(bits)
    inputs[3] = inputs[4, 0] * np.arange(-4, 5, dtype=np.float32) / 2  # whole and half steps
    peak = np.abs(inputs).max(axis=axes, keepdims=True)
    scale = None if range_ is None else jnp.asarray(np.float32(range_) * peak / np.float32(largest))
    wanted, *others = (rounded(name, inputs, bits, axes, scale) for name in ROUNDERS)
    for found in others:
        for one, other in zip(wanted, found, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_an_encoder_is_the_same_whoever_rounds(monkeypatch):
    images, features = small.images(2), []
    encoder = quantize(small.encoder("siglip"), images, Scheme())
    for name in ROUNDERS:
        monkeypatch.setenv(SETTING, name)
        features.append(jax.jit(lambda: encode_image(encoder, images))())  # traced anew
    np.testing.assert_array_equal(*features)


def test_a_rounder_that_is_none_and_one_that_is_not_installed_are_refused(monkeypatch):
    monkeypatch.setenv(SETTING, "abacus")
    with pytest.raises(UserError, match="REGCACHE_ROUNDER must be one of lax, aqt, got abacus"):
        to_integers(jnp.ones(3), 8, (0,))
    monkeypatch.setenv(SETTING, "aqt")
    monkeypatch.setitem(sys.modules, "aqt.jax.v2", None)
    with pytest.raises(UserError, match="REGCACHE_ROUNDER=aqt needs the package aqtp"):
        to_integers(jnp.ones(3), 8, (0,))
