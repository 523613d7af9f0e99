"""Text towers: who sees whom, where a sentence's feature is read, and the bag of hashed words by hand."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.spec import BlockSpec, TextSpec
from regcache_jax.encoders.encoder import encode_text, init_params
from regcache_jax.encoders.text import causal_bias, pooled_position, text_features

HASHED = TextSpec(20, 5, BlockSpec(8, 1, 1, 12, "gelu_tanh", 1e-6), "last", kind="hashed", projection=6)
CLIP_IDS = np.array([[48, 3, 4, 49, 0, 0], [48, 7, 49, 0, 0, 0]], np.int32)


@functools.partial(jax.jit, static_argnames="spec")
def features(params, ids, spec):
    return text_features(params, ids, spec)[0]


def tower(kind: str):
    encoder = small.encoder(f"{kind} with text")
    return functools.partial(features, encoder.params.text, spec=encoder.spec.text)


def test_a_causal_tower_does_not_see_what_follows_the_end_of_the_text():
    run = tower("clip")
    other = CLIP_IDS.copy()
    other[0, 4:], other[1, 3:] = 11, 12
    np.testing.assert_array_equal(run(CLIP_IDS), run(other))
    other[:, 1] += 1
    assert (np.abs(run(CLIP_IDS) - run(other)).max(axis=1) > 1e-3).all()


def test_a_tower_without_a_causal_mask_sees_every_position():
    run = tower("siglip")
    ids = np.ones((6, 6), np.int32)
    ids[np.arange(6), np.arange(6)] = 9  # row i differs from all ones at position i
    plain = run(np.ones((6, 6), np.int32))
    assert (np.abs(run(ids) - plain).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("eot", [3, 2]), ("argmax", [3, 2]), ("last", [5, 5])],
)
def test_the_feature_is_read_where_the_pooling_says(pooling, expected):
    spec = dataclasses.replace(small.TEXTS["clip"], pooling=pooling)
    np.testing.assert_array_equal(pooled_position(jnp.asarray(CLIP_IDS), spec), expected)


def test_of_several_end_of_text_ids_the_first_counts():
    ids = jnp.asarray([[48, 49, 3, 49, 49, 49]], jnp.int32)
    np.testing.assert_array_equal(pooled_position(ids, small.TEXTS["clip"]), [1])


def test_the_causal_bias_hides_exactly_the_later_positions():
    bias = causal_bias(4)[0, 0]
    np.testing.assert_array_equal(np.isneginf(bias), np.triu(np.ones((4, 4), bool), 1))
    assert (np.asarray(bias)[np.tril_indices(4)] == 0).all()


def test_a_shorter_sentence_uses_the_first_rows_of_the_position_table():
    run = tower("clip")
    np.testing.assert_allclose(run(CLIP_IDS[:, :4]), run(CLIP_IDS), rtol=1e-5, atol=1e-6)  # two programs


def test_collected_states_begin_with_the_embeddings():
    encoder = small.encoder("clip with text")
    params, spec = encoder.params.text, encoder.spec.text
    run = jax.jit(lambda ids: text_features(params, ids, spec, collect={"hidden": lambda trace: trace.hidden})[1])
    hidden = run(CLIP_IDS)["hidden"]
    assert hidden.shape == (spec.blocks.num_blocks, 2, 6, 24)
    embedded = np.asarray(params.token_embedding)[CLIP_IDS] + np.asarray(params.position_embedding)
    np.testing.assert_allclose(hidden[0], embedded, rtol=1e-6)


def hashed_params():
    """Biases are drawn, too."""
    spec, rng = dataclasses.replace(small.SPECS["siglip"], text=HASHED), np.random.default_rng(3)
    drawn = init_params(spec, jax.random.key(0)).text
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), drawn)


def test_hashed_words_are_a_sum_over_the_root_of_their_number_and_two_layers():
    params = hashed_params()
    ids = np.array([[3, 9, 3, 0, 0], [0, 0, 0, 0, 0]], np.int32)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table = weights.embedding
    bag = np.stack([(2 * table[3] + table[9]) / math.sqrt(3), np.zeros(8)])  # no word at all: no bag
    inner = bag @ weights.fc1.kernel + weights.fc1.bias
    inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    expected = inner @ weights.fc2.kernel + weights.fc2.bias
    np.testing.assert_allclose(features(params, ids, HASHED), expected, rtol=1e-5, atol=1e-5)  # float32 against float64


def test_hashed_words_have_no_order_and_padding_no_weight():
    params = hashed_params()
    one = features(params, np.array([[5, 8, 2, 0, 0]], np.int32), HASHED)
    other = features(params, np.array([[0, 2, 5, 0, 8]], np.int32), HASHED)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # three numbers added in another order


def test_encoded_text_has_unit_length():
    encoder = small.encoder("clip with text")
    norms = np.linalg.norm(jax.jit(encode_text)(encoder, CLIP_IDS), axis=1)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-6)
