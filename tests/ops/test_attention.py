"""Attention with registers: one row with a logit bias against rows really repeated, and rows hidden in the padding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regcache_jax.core.plan import BlockRegister
from regcache_jax.ops.attention import attend, attend_reference, attend_slot

B, T, S, H, K, R = 2, 3, 5, 4, 8, 2
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of a dozen numbers of order one, in another order


def draw(seed: int = 0, scale: float = 1.0):
    """Random query, key, value and register rows; `scale` sharpens the softmax."""
    rng = np.random.default_rng(seed)
    shapes = {"query": (B, T, H, K), "key": (B, S, H, K), "value": (B, S, H, K)}
    tokens = {name: jnp.asarray(rng.normal(size=shape) * scale, jnp.float32) for name, shape in shapes.items()}
    return tokens, jnp.asarray(rng.normal(size=(2, R, H, K)) * scale, jnp.float32)


def by_definition(query, key, value, rows, copies) -> np.ndarray:
    """softmax in float64 where row r of head h counts copies[r, h] times."""
    query, key, value, rows = (np.asarray(leaf, np.float64) for leaf in (query, key, value, rows))
    logits = np.einsum("bthk,bshk->bhts", query, key) / np.sqrt(K)
    row_logits = np.einsum("bthk,rhk->bhtr", query, rows[0]) / np.sqrt(K)
    peak = np.maximum(logits.max(-1), row_logits.max(-1))[..., None]
    terms, row_terms = np.exp(logits - peak), np.exp(row_logits - peak) * np.asarray(copies).T[:, None, :]
    mixed = np.einsum("bhts,bshk->bthk", terms, value) + np.einsum("bhtr,rhk->bthk", row_terms, rows[1])
    return mixed / np.swapaxes(terms.sum(-1) + row_terms.sum(-1), 1, 2)[..., None]


@functools.partial(jax.jit, static_argnames="form")
def with_copies(tokens, rows, copies, form="bias"):
    register = BlockRegister(rows[0], rows[1], jnp.log(copies))
    if form == "bias":
        return attend(**tokens, register=register).mixed
    # the last token is repeated in three more rows, of which the registers take the first two
    padded = {
        name: jnp.pad(leaf, ((0, 0), (0, 3), (0, 0), (0, 0)), mode="edge") if name != "query" else leaf
        for name, leaf in tokens.items()
    }
    padded["query"] = jnp.pad(tokens["query"], ((0, 0), (0, S + 3 - T), (0, 0), (0, 0)), mode="edge")
    return attend_slot(**padded, slot=S, register=register).mixed[:, :T]


@pytest.mark.parametrize("form", ["bias", "slot"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    copies=st.lists(st.floats(1 / 128, 200.0, width=32), min_size=R * H, max_size=R * H),
)
def test_any_positive_number_of_copies_a_row_and_head_weighs_as_the_softmax_s_definition_says(
    form, seed, scale, copies
):
    tokens, rows = draw(seed, scale)
    copies = jnp.asarray(copies, jnp.float32).reshape(R, H)
    # logits reach 16 * |query| * |key| / sqrt(8), near 200, at the sharpest: their rounding, 200 * 2^-24, scales the terms
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * max(1.0, scale**3)}
    np.testing.assert_allclose(
        with_copies(tokens, rows, copies, form), by_definition(**tokens, rows=rows, copies=copies), **tolerance
    )


@pytest.mark.parametrize("copies", [1, 3, 15])
def test_the_plain_reference_is_the_definition_too(copies):
    tokens, rows = draw()
    register = BlockRegister(rows[0], rows[1], jnp.zeros((R, H)))
    found = attend_reference(**tokens, register=register, copies=copies)
    np.testing.assert_allclose(found, by_definition(**tokens, rows=rows, copies=np.full((R, H), copies)), **ROUNDING)


def test_a_hidden_register_leaves_every_bit_as_it_was():
    tokens, rows = draw()
    hidden = BlockRegister(rows[0], rows[1], jnp.full((R, H), -jnp.inf))
    without, with_hidden = attend(**tokens), attend(**tokens, register=hidden)
    np.testing.assert_array_equal(with_hidden.mixed, without.mixed)
    np.testing.assert_array_equal(with_hidden.weights, without.weights)
    assert (np.asarray(with_hidden.register_weights) == 0).all()


def test_a_hidden_register_takes_no_part_however_large_its_key():
    tokens, rows = draw()
    hidden = BlockRegister(1e6 * rows[0], rows[1], jnp.full((R, H), -jnp.inf))
    np.testing.assert_array_equal(attend(**tokens, register=hidden).mixed, attend(**tokens).mixed)


def test_weights_of_tokens_and_registers_sum_to_one_and_mix_the_values():
    tokens, rows = draw()
    register = BlockRegister(rows[0], rows[1], jnp.log(jnp.full((R, H), 2.5)))
    found = attend(**tokens, register=register)
    np.testing.assert_allclose(found.weights.sum(-1) + found.register_weights.sum(-1), 1.0, rtol=1e-6)
    mixed = jnp.einsum("bhts,bshk->bthk", found.weights, tokens["value"])
    mixed += jnp.einsum("bhtr,rhk->bthk", found.register_weights, rows[1])
    np.testing.assert_allclose(found.mixed, mixed, **ROUNDING)


def test_tokens_hidden_by_the_bias_are_as_good_as_absent():
    tokens, _ = draw()
    bias = jnp.where(jnp.arange(S) < 3, 0.0, -jnp.inf)[None, None, None, :]
    short = {name: leaf if name == "query" else leaf[:, :3] for name, leaf in tokens.items()}
    np.testing.assert_allclose(attend(**tokens, bias=bias).mixed, attend(**short).mixed, **ROUNDING)


def test_without_a_register_the_slot_form_counts_no_padding_row():
    tokens, _ = draw()
    padded = {
        name: jnp.pad(leaf[:, :T], ((0, 0), (0, 5), (0, 0), (0, 0)), mode="edge") for name, leaf in tokens.items()
    }
    found = attend_slot(**padded, slot=T, register=None)
    plain = attend(**{name: leaf[:, :T] for name, leaf in tokens.items()})
    np.testing.assert_allclose(found.mixed[:, :T], plain.mixed, **ROUNDING)
    assert (np.asarray(found.weights[..., T:]) == 0).all()


@pytest.mark.parametrize("form", ["bias", "slot"])
def test_gradients_in_rows_and_copies_are_those_of_the_definition(form):
    tokens, rows = draw(3)
    copies = jnp.asarray(np.random.default_rng(4).uniform(0.5, 9.0, (R, H)), jnp.float32)
    direction = np.random.default_rng(5).normal(size=(B, T, H, K))

    def loss(rows, log_copies):
        return jnp.sum(with_copies(tokens, rows, jnp.exp(log_copies), form) * direction.astype(np.float32))

    def reference(rows, log_copies):
        return np.sum(by_definition(**tokens, rows=rows, copies=np.exp(log_copies)) * direction)

    point = np.asarray(rows, np.float64), np.log(np.asarray(copies, np.float64))
    slopes = jax.grad(loss, (0, 1))(rows, jnp.log(copies))
    step = 1e-5  # float64: the central difference is exact to about 1e-9
    for number, slope in enumerate(slopes):
        for index in np.random.default_rng(6).choice(slope.size, 8, replace=False):
            moved = [[leaf.copy() for leaf in point] for _ in range(2)]
            for side, sign in zip(moved, (1, -1), strict=True):
                side[number].ravel()[index] += sign * step
            difference = (reference(*moved[0]) - reference(*moved[1])) / (2 * step)
            np.testing.assert_allclose(slope.ravel()[index], difference, rtol=1e-4, atol=1e-5)  # float32 gradients


def test_attention_in_bfloat16_stays_near_float32_and_keeps_its_dtype():
    tokens, rows = draw()
    register = BlockRegister(rows[0], rows[1], jnp.zeros((R, H)))
    exact = attend(**tokens, register=register).mixed
    halved = attend(**{name: leaf.astype(jnp.bfloat16) for name, leaf in tokens.items()}, register=register).mixed
    assert halved.dtype == jnp.bfloat16
    np.testing.assert_allclose(halved.astype(jnp.float32), exact, atol=0.03)  # eight bits of values of order one
