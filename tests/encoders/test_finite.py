"""Where features stop being numbers: named by encoder, scheme, block and site."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.names import from_names, to_names
from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.encoders.finite import check_texts, not_finite
from regcache_jax.evaluation.rows import check_rows
from regcache_jax.quantization.quantize import quantize


def with_leaf(encoder, place, value, name):
    """The encoder with one number (or some) of one leaf replaced."""
    leaves = to_names(encoder.params)
    return encoder.replace(params=from_names({**leaves, name: leaves[name].at[place].set(value)}))


def test_a_weight_that_is_not_finite_is_named_with_its_block():
    encoder = with_leaf(small.encoder(), (1, 0, 0), np.nan, "image/blocks/mlp/fc1/kernel")
    message = str(not_finite(encoder, np.asarray(small.images(1)), "a.png"))
    assert message.startswith("the features of a.png by clip (float) are not finite; it begins in the weights: ")
    assert message.endswith("fc1/kernel of block 1")
    with pytest.raises(UserError, match="site fc2 of block 1 are not finite"):  # what its output first reaches
        quantize(encoder, small.images(2), Scheme())


def test_sums_that_overflow_are_found_at_the_first_block_and_site():
    encoder = with_leaf(small.encoder(), (1, slice(None)), 1e30, "image/blocks/norm2/scale")
    images = np.array(small.images(1))
    assert not np.isfinite(jax.jit(encode_image)(encoder, images)).all()
    assert "it begins in block 2 at site qkv" in str(not_finite(encoder, images, "a.png"))
    images[0, 0, 0, 0] = np.inf
    assert "in the preprocessed picture itself" in str(not_finite(encoder, images, "a.png"))


def test_rows_and_texts_that_are_not_finite_stop_an_evaluation():
    from regcache_jax.data import open_dataset

    encoder = with_leaf(small.encoder(), 0, np.inf, "image/final_norm/bias")
    rows = {"finite": np.array([True, False]), "place": np.array([0, 3])}
    dataset = open_dataset("emoji", split="test")
    with pytest.raises(UserError, match=f"the features of {dataset[3].name} by clip .*final_norm/bias$"):
        check_rows(encoder, rows, dataset, encoder.spec.preprocessing)
    with pytest.raises(UserError, match="the features of text 2 by clip"):
        check_texts(small.encoder(), np.array([[1.0], [np.nan]], np.float32))
