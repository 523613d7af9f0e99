"""Register plans: built, checked, saved; deletion and what fills its places."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import make_plan
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.models.plan_file import check_plan, load_plan, save_plan
from regcache_jax.ops.delete import delete_largest, fill_absent, fill_deleted, mark_largest, norm_rank

ROWS = jnp.ones((3, 1, 3, 8))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"start": 4}, "start must be a block 0..3, got 4"),
        ({"start": 3, "stop": 2}, "stop must be 3..3, got 2"),
        ({"delete_block": 3}, "delete_block must be 0..2, got 3"),
        ({"delete_count": 16, "num_patches": 16}, "delete_count must be 0..15, got 16"),
        ({"copies": 0.0}, "copies must be positive"),
        ({"copies": float("inf")}, "copies must be positive and finite"),
    ],
)
def test_a_plan_with_a_wrong_number_is_refused(numbers, message):
    with pytest.raises(UserError, match=message):
        make_plan(ROWS, ROWS, **numbers)


def test_all_faults_of_a_plan_come_in_one_message():
    with pytest.raises(UserError, match=r"start .*; stop .*; copies .*; keys and values must be finite"):
        make_plan(ROWS * jnp.nan, ROWS, start=9, stop=1, copies=-1.0)


def test_prefix_only_and_delete_only_are_plans():
    plan = small.random_plan(start=1, stop=3, delete_block=2, delete_count=3)
    assert plan.has_registers and plan.prefix_only().schedule().delete_count == 0
    alone = plan.delete_only().schedule()
    assert alone.start == alone.stop and alone.delete_count == 3


@pytest.mark.slow
def test_a_plan_of_another_shape_is_refused_by_the_encoder():
    encoder = small.encoder("siglip")
    with pytest.raises(UserError, match="2 blocks of 3 heads of 8; siglip has 3 blocks"):
        encoder.with_plan(make_plan(ROWS[:2], ROWS[:2]))
    with pytest.raises(UserError, match="deletes 16 tokens; siglip has 16 patches"):
        encoder.with_plan(make_plan(ROWS, ROWS, delete_count=16))


def test_a_plan_comes_back_from_its_file_with_its_metadata(tmp_path):
    plan = small.random_plan(
        3, num_registers=2, start=1, stop=3, copies=jnp.full((3, 3), 2.5), delete_block=2, delete_count=4
    )
    save_plan(tmp_path / "plan.safetensors", plan, {"encoder": "small"})
    loaded, metadata = load_plan(tmp_path / "plan.safetensors")
    assert metadata["encoder"] == "small" and loaded.schedule() == plan.schedule()
    for one, other in zip(jax.tree.leaves(plan), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="exists already"):
        save_plan(tmp_path / "plan.safetensors", plan)


@pytest.mark.slow
def test_a_plan_belongs_to_the_weights_it_was_found_on():
    encoder, other = small.encoder("siglip", 0), small.encoder("siglip", 1)
    metadata = {"encoder": "siglip", "encoder_hash": encoder_hash(encoder)}
    check_plan("plan", metadata, encoder)
    with pytest.raises(UserError, match="found on another encoder"):
        check_plan("plan", metadata, other)


@pytest.mark.parametrize("content", ["text", "truncated", "other tensors", "bad shapes", "bad numbers"])
def test_a_damaged_plan_file_is_refused_by_name(content, tmp_path):
    file = tmp_path / "plan.safetensors"
    save_plan(file, small.random_plan())
    arrays = safetensors.numpy.load(file.read_bytes())
    if content == "text":
        file.write_text("not a plan")
    elif content == "truncated":
        file.write_bytes(file.read_bytes()[:-20])
    elif content == "other tensors":
        file.write_bytes(safetensors.numpy.save({"weight": arrays["key"]}))
    elif content == "bad shapes":
        file.write_bytes(safetensors.numpy.save({**arrays, "value": arrays["value"][:, :, :1]}))
    else:
        file.write_bytes(safetensors.numpy.save({**arrays, "start": np.asarray(77, np.int32)}))
    with pytest.raises(UserError, match=r"plan\.safetensors"):
        load_plan(file)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(0, 8), st.integers(0, 3))
def test_deletion_takes_the_largest_unprotected_tokens(seed, count, protected):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.integers(-4, 5, (2, 12, 3)), jnp.float32)  # small integers: many ties
    norms = np.abs(np.asarray(hidden)).max(axis=-1)
    marked = np.asarray(mark_largest(hidden, count, protected))
    for row, mask in zip(norms, marked, strict=True):
        order = sorted(range(protected, 12), key=lambda position: (-row[position], position))
        assert set(np.flatnonzero(mask)) == set(order[:count])
    kept, positions = delete_largest(hidden, count, protected)
    for batch in range(2):
        np.testing.assert_array_equal(positions[batch], np.flatnonzero(~marked[batch]))
        np.testing.assert_array_equal(kept[batch], hidden[batch][~marked[batch]])


def test_ranks_are_a_permutation_with_the_protected_last():
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9, 4)), jnp.float32)
    rank = np.asarray(norm_rank(hidden, 2))
    assert (np.sort(rank, axis=1) == np.arange(9)).all()
    assert (rank[:, :2] >= 7).all()


@pytest.mark.slow
def test_deleted_places_are_filled_with_the_mean_of_their_kept_neighbours():
    values = jnp.arange(9, dtype=jnp.float32)
    kept = jnp.asarray([[1, 2, 3, 5, 6, 7, 8]])  # 0 (a corner) and 4 (the centre) are deleted
    filled = fill_deleted(values[kept][..., None], kept, 3)[0, :, 0]
    expected = np.arange(9, dtype=np.float32)
    expected[0] = (1 + 3) / 2
    expected[4] = (1 + 2 + 3 + 5 + 6 + 7 + 8) / 7
    np.testing.assert_allclose(filled, expected, rtol=1e-6)


def test_places_are_filled_alike_whether_patches_are_gone_or_only_marked():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 2)), jnp.float32)
    kept = jnp.asarray([[1, 2, 3, 5, 6, 7, 8]])
    there = jnp.zeros((1, 9), bool).at[0, kept[0]].set(True)
    np.testing.assert_allclose(fill_absent(values, there, 3), fill_deleted(values[:, kept[0]], kept, 3), rtol=1e-6)


@pytest.mark.slow
def test_a_place_without_kept_neighbours_gets_the_mean_of_all():
    kept = jnp.asarray([[15]])
    filled = fill_deleted(jnp.full((1, 1, 1), 6.0), kept, 4)[0, :, 0]
    np.testing.assert_allclose(filled, np.full(16, 6.0))
