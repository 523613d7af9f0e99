import jax
import numpy as np
import pytest
from streaming import check_memory_does_not_grow

from regcache_jax.data.cut import cut
from regcache_jax.encoders.vision import image_features
from regcache_jax.registers.candidates import Candidates, find_candidates, registers_from, token_form

COUNT = 5


@pytest.fixture(scope="module")
def everything(encoder, images):
    """Norms, keys and values of all tokens in all blocks, as numpy arrays [L, B, N, ...]."""
    collect = {"hidden": lambda t: t.hidden, "key": lambda t: t.key, "value": lambda t: t.value}
    seen = image_features(
        encoder.params.image, jax.numpy.asarray(images), encoder.spec.image, collect=collect
    ).collected
    return {name: np.asarray(array) for name, array in seen.items()}


@pytest.mark.slow
@pytest.mark.parametrize("class_token", [False, True])
def test_candidates_are_the_largest_tokens_with_keys_and_values_of_their_own_image(
    encoder, images, everything, class_token
):
    found = find_candidates(encoder, images, [1, 2], count=COUNT, class_token=class_token, batch_size=4)
    first = encoder.spec.image.num_protected
    allowed = [
        *([0] if class_token else []),
        *range(first, encoder.spec.image.num_tokens),
    ]  # never the trained register, 1
    for place, block in enumerate((1, 2)):
        norms = np.abs(everything["hidden"][block]).max(axis=-1)
        order = sorted((-norms[b, n], b, n) for b in range(len(images)) for n in allowed)[:COUNT]
        np.testing.assert_allclose(found.norm[place], [-row[0] for row in order], rtol=1e-5)
        for rank, (_, b, n) in enumerate(order):
            # another batch size adds in another order: a few units in the last place of values around 1
            np.testing.assert_allclose(found.key[place, rank], everything["key"][:, b, n], atol=1e-5)
            np.testing.assert_allclose(found.value[place, rank], everything["value"][:, b, n], atol=1e-5)
            np.testing.assert_allclose(found.hidden[place, rank], everything["hidden"][block, b, n], atol=1e-5)


def test_batches_and_rows_that_only_fill_them_change_nothing(encoder, images):
    whole = find_candidates(encoder, images, [1], count=COUNT, batch_size=7)
    streamed = find_candidates(encoder, cut(images, 3), [1], count=COUNT)
    for one, other in zip(whole, streamed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_memory_does_not_grow_with_the_set(encoder, images):
    check_memory_does_not_grow(lambda batches: find_candidates(encoder, batches, [1, 2], count=COUNT), images)


@pytest.mark.slow
def test_the_token_form_of_a_candidate_is_the_row_that_it_has_where_it_stands_alone(encoder, images):
    found = find_candidates(encoder, images, [1], count=1)
    averaged = registers_from(found, 0)
    alone = token_form(averaged, encoder, start=1)
    # at its own block a single token has the key and value that it had in its image; later it has seen itself alone
    np.testing.assert_allclose(alone.key[1], averaged.key[1], atol=1e-5)
    np.testing.assert_allclose(alone.value[1], averaged.value[1], atol=1e-5)
    assert not np.allclose(alone.key[2], averaged.key[2], atol=1e-3) and not np.asarray(alone.key[0]).any()


def test_a_set_too_small_to_fill_the_list_is_averaged_over_what_there_is(encoder, images):
    found = find_candidates(encoder, images[:1], [0], count=100)
    patches = encoder.spec.image.grid**2
    norms = np.asarray(found.norm[0])
    assert (norms[:patches] > 0).all() and (norms[patches:] == -1).all()
    key, _, hidden, share = registers_from(found, 0)
    np.testing.assert_allclose(key[:, 0], np.asarray(found.key[0, :patches]).mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hidden[0], np.asarray(found.hidden[0, :patches]).mean(axis=0), rtol=1e-5, atol=1e-6)
    assert share.tolist() == [1.0]


def test_two_clusters_become_two_registers_that_share_the_copies():
    rows = np.repeat(np.array([1.0, 5.0, 5.0, 5.0], np.float32), 6).reshape(1, 4, 3, 1, 2)
    hidden = rows[:, :, 0, 0]
    candidates = Candidates(np.ones((1, 4), np.float32), hidden, rows, -rows)
    key, value, means, share = registers_from(candidates, 0, num_registers=2)
    assert sorted(key[0, :, 0, 0].tolist()) == [1.0, 5.0]
    np.testing.assert_array_equal(value, -key)
    np.testing.assert_array_equal(means, key[0, :, 0])
    assert sorted(share.tolist()) == [0.25, 0.75] and share[int(key[0, 0, 0, 0] == 1.0)] == 0.75


def test_equal_candidates_make_one_register_however_many_are_asked_for():
    rows = np.ones((1, 4, 3, 1, 2), np.float32)
    candidates = Candidates(np.ones((1, 4), np.float32), rows[:, :, 0, 0], rows, rows)
    key, _, _, share = registers_from(candidates, 0, num_registers=3)
    assert key.shape == (3, 1, 1, 2) and share.tolist() == [1.0]
