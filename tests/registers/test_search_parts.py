"""Who does what: pictures that verify are apart from all others, and a draw's scores from its scales."""

import numpy as np
import pytest

import regcache_jax as rc
from regcache_jax.registers.search.claim import claim_of
from regcache_jax.registers.search.parts import make_draws, split
from regcache_jax.registers.search.scores import tied


@pytest.mark.parametrize("num_images", [4, 5, 13, 64, 256])
def test_every_picture_is_worked_with_or_verifies_and_none_does_both(num_images):
    parts = split(num_images, 0.25, seed=0)
    assert sorted([*parts.working, *parts.verifying]) == list(range(num_images))
    assert len(parts.verifying) == max(1, round(num_images / 4))
    again, other = split(num_images, 0.25, seed=0), split(num_images, 0.25, seed=1)
    np.testing.assert_array_equal(parts.working, again.working)
    assert num_images < 64 or not np.array_equal(parts.working, other.working)


def test_too_few_pictures_are_refused():
    with pytest.raises(rc.UserError, match=r"needs at least 4 images .*, got 3"):
        split(3, 0.25, 0)


@pytest.mark.parametrize(
    ("num_images", "first"), [(192, 32), (96, 16), (48, 16), (10, 8), (3, 3), (1, 1), (37500, 6144)]
)
def test_the_first_rung_holds_a_group_of_every_draw(num_images, first):
    draws = make_draws(num_images)
    assert draws.first_rung(num_images) == first == draws.count * draws.group
    assert set(draws.of(np.arange(first))) == set(range(draws.count))


@pytest.mark.parametrize("batch", [1, 3, 8, 32, 64])
def test_whose_draw_a_picture_is_does_not_depend_on_the_batch(batch):
    draws = make_draws(192)
    chunk = draws.chunk(batch)
    assert chunk <= batch and draws.group % chunk == 0  # no chunk reaches over the edge of a group


@pytest.mark.parametrize("num_images", [13, 48, 192, 400, 1000])
@pytest.mark.parametrize("batch", [8, 32, 128])
def test_those_that_give_scales_in_one_run_are_of_other_draws_and_the_same_in_every_batch(num_images, batch):
    draws = make_draws(num_images)
    rung = np.arange(draws.first_rung(num_images))
    whole = draws.others(rung)
    assert (whole.sum(axis=1) == 3 * draws.share).all() and draws.share * draws.count <= 32
    assert not whole[draws.of(rung)[:, None] == draws.of(rung)].any() and (whole == whole.T).all()
    if not draws.together(batch):
        return
    chunk = draws.chunk(batch)
    assert chunk % draws.share == 0 and chunk * draws.count <= batch
    for begin in range(0, draws.group, chunk):  # a chunk of each draw at a time
        rows = np.flatnonzero((rung % draws.group >= begin) & (rung % draws.group < begin + chunk))
        np.testing.assert_array_equal(draws.others(rows), whole[np.ix_(rows, rows)])
        assert (draws.others(rows).sum(axis=1) == 3 * draws.share).all()


def test_a_claim_says_the_mean_the_worst_and_a_spread_of_pictures_and_of_draws():
    every, moved = np.array([1.0, 3.0]), [np.array([-1.0, -1.0]), np.array([1.0, 1.0])]
    alone, both = claim_of(every), claim_of(every, moved)
    assert (alone.error, alone.worst, alone.images) == (2.0, 3.0, 2)
    assert alone.spread == 1.0  # deviation sqrt(2), over two pictures
    np.testing.assert_allclose(both.spread, 3**0.5)  # and variance 2 of the draws' means -1 and 1
    pictures_differ = [np.array([-3.0, 1.0]), np.array([-1.0, 3.0])]  # by more than the draws
    assert claim_of(every, pictures_differ) == alone
    seen = claim_of(every, others=np.array([1.0, 3.0, 2.0, 10.0]))  # how pictures differ, not their mean
    assert (seen.error, seen.worst, seen.images) == (2.0, 3.0, 2)
    np.testing.assert_allclose(seen.spread, (np.var([1, 3, 1, 3, 2, 10], ddof=1) / 2) ** 0.5)
    assert both.sentence() == "2 +- 2 on 2 held-out pictures (worst 3)"


@pytest.mark.parametrize(
    ("drawn", "ties"),
    [
        ([1.0, 1.2, 0.9, 1.1], True),  # the leader itself
        ([1.02, 1.18, 0.98, 1.1], True),
        ([1.2, 1.4, 1.1, 1.3], False),  # behind in every draw alike
        ([0.9, 5.0, 0.8, 0.9], False),  # behind by less than the difference deviates, but far from stable
    ],
    ids=["equal", "within the jitter", "behind", "unstable"],
)
def test_a_point_ties_where_draws_cannot_tell_it_from_the_leader_and_its_own_agree(drawn, ties):
    assert tied(drawn, [1.0, 1.2, 0.9, 1.1]) == ties
