"""Position tables at another grid, against the libraries whose way each name stands for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regcache_jax.ops.positions import resize_matrix, resize_positions

WAYS = ["bicubic", "bicubic_offset", "bicubic_antialias", "bilinear", "bilinear_antialias", "bilinear_centres"]
sides = st.integers(2, 40)
# Values of order one; PyTorch computes its weights in float32 from coordinates up to 40, which leaves about 40 * 2^-23 of them.
COORDINATES = {"rtol": 1e-5, "atol": 2e-5}


def by_the_library(table: np.ndarray, stored: int, wanted: int, way: str) -> np.ndarray:
    """What Meta's DINOv2 (offset; antialias in its models with registers), transformers, big_vision (bilinear) and Meta's PE
    (bilinear_centres) call."""
    grid = table.reshape(stored, stored, -1)
    if way == "bilinear":
        return scipy.ndimage.zoom(grid, (wanted / stored, wanted / stored, 1), order=1).reshape(wanted**2, -1)
    planes = torch.from_numpy(grid).permute(2, 0, 1)[None]
    size = {"scale_factor": (wanted + 0.1) / stored} if way == "bicubic_offset" else {"size": (wanted, wanted)}
    resized = torch.nn.functional.interpolate(
        planes, mode=way.split("_")[0], align_corners=False, antialias="antialias" in way, **size
    )
    assert resized.shape[2:] == (wanted, wanted)
    return resized[0].permute(1, 2, 0).reshape(wanted**2, -1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(stored=sides, wanted=sides, prefix=st.integers(0, 2))
def test_a_resized_table_is_the_library_s_and_its_first_rows_stay(way, stored, wanted, prefix):
    assume(stored != wanted)
    table = np.random.default_rng(stored).normal(size=(prefix + stored**2, 3)).astype(np.float32)
    resized = np.asarray(resize_positions(jnp.asarray(table), prefix, stored, wanted, way))
    np.testing.assert_array_equal(resized[:prefix], table[:prefix])
    np.testing.assert_allclose(resized[prefix:], by_the_library(table[prefix:], stored, wanted, way), **COORDINATES)


@pytest.mark.parametrize(("stored", "wanted"), [(37, 16), (37, 27), (16, 37), (14, 24)])
@pytest.mark.parametrize("way", WAYS)
def test_the_published_grids_come_out_as_in_the_libraries(way, stored, wanted):
    table = np.random.default_rng(0).normal(size=(stored**2, 3)).astype(np.float32)
    resized = resize_positions(jnp.asarray(table), 0, stored, wanted, way)
    np.testing.assert_allclose(resized, by_the_library(table, stored, wanted, way), **COORDINATES)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(stored=st.integers(1, 60), wanted=st.integers(1, 60))
def test_a_constant_table_stays_constant(way, stored, wanted):
    rows = resize_matrix(stored, wanted, way).sum(axis=1)
    np.testing.assert_allclose(rows, 1.0, atol=2e-6)  # up to 60 / wanted float32 weights a row


@pytest.mark.slow
def test_a_table_of_the_wanted_grid_is_handed_back_untouched():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(17, 3)), jnp.bfloat16)
    assert resize_positions(table, 1, 4, 4, "bicubic") is table
    assert resize_positions(table, 1, 4, 6, "bicubic").dtype == jnp.bfloat16
