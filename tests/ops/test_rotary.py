from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regcache_jax.core.spec import Rotary
from regcache_jax.ops.rotary import rotate, turn_of

ROTARIES = [
    Rotary(100.0),
    Rotary(100.0, "interleaved"),
    Rotary(10000.0, "interleaved", "columns", "integer", 1),
    Rotary(100.0, "half", "columns", "integer"),
]
GRID, HEAD = (3, 5), 16


def places(*numbers: int) -> jax.Array:
    return jnp.asarray([numbers], jnp.int32)


def heads(seed: int, count: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((1, count, 2, HEAD)).astype(np.float32))


@pytest.mark.parametrize("rotary", ROTARIES, ids=str)
def test_pairs_turn_by_the_angles_that_the_spec_states(rotary):
    turned = np.asarray(rotate(heads(0, 1), turn_of(rotary, places(7), GRID, HEAD), rotary), np.float64)[0, 0]
    row, column = 1, 2  # of place 7 among 3 x 5
    at = {"rows": row, "columns": column}
    if rotary.coordinates == "normalized":
        at = {"rows": 2 * np.pi * (2 * (row + 0.5) / 3 - 1), "columns": 2 * np.pi * (2 * (column + 0.5) / 5 - 1)}
    else:
        at = {axis: number + rotary.offset for axis, number in at.items()}
    other = {"rows": "columns", "columns": "rows"}[rotary.first_axis]
    angles = [at[axis] / rotary.base ** (4 * index / HEAD) for axis in (rotary.first_axis, other) for index in range(4)]
    drawn = np.asarray(heads(0, 1), np.float64)[0, 0]
    for pair, angle in enumerate(angles):
        first, second = (pair, pair + 8) if rotary.layout == "half" else (2 * pair, 2 * pair + 1)
        a, b = drawn[:, first], drawn[:, second]
        np.testing.assert_allclose(turned[:, first], a * np.cos(angle) - b * np.sin(angle), atol=2e-6)
        np.testing.assert_allclose(turned[:, second], b * np.cos(angle) + a * np.sin(angle), atol=2e-6)


@pytest.mark.parametrize("rotary", ROTARIES, ids=str)
def test_what_has_no_place_is_not_turned_and_a_turn_back_undoes_a_turn(rotary):
    drawn, turn = heads(1, 3), turn_of(rotary, places(-2, -1, 14), GRID, HEAD)
    turned = rotate(drawn, turn, rotary)
    np.testing.assert_array_equal(turned[:, :2], drawn[:, :2])
    assert float(jnp.abs(turned[:, 2] - drawn[:, 2]).max()) > 0.1
    np.testing.assert_allclose(rotate(turned, turn.back(), rotary), drawn, atol=1e-6)


@pytest.mark.parametrize("rotary", ROTARIES, ids=str)
def test_a_product_of_query_and_key_depends_on_how_far_apart_they_are_alone(rotary):
    query, key = heads(2, 1), heads(3, 1)

    def logit(of: int, to: int) -> np.ndarray:
        turned = (
            rotate(own, turn_of(rotary, places(place), GRID, HEAD), rotary) for own, place in ((query, of), (key, to))
        )
        return np.asarray(jnp.einsum("bnhk,bnhk->h", *turned))

    np.testing.assert_allclose(logit(0, 6), logit(8, 14), rtol=1e-4, atol=1e-4)  # a row down, a column right
    assert np.abs(logit(0, 6) - logit(6, 0)).max() > 1e-2


def test_a_turn_is_computed_in_float32_and_keeps_the_dtype():
    drawn, rotary = heads(4, 1), ROTARIES[0]
    turn = turn_of(rotary, places(3), GRID, HEAD)
    short = rotate(drawn.astype(jnp.bfloat16), turn, rotary)
    assert short.dtype == jnp.bfloat16
    exact = rotate(drawn.astype(jnp.bfloat16).astype(jnp.float32), turn, rotary)
    np.testing.assert_array_equal(short, exact.astype(jnp.bfloat16))
