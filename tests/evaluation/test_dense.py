"""Dense features: deleted patches filled in, and the segmentation probe against the definitions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import small
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import HALF, Preprocessing
from regcache_jax.encoders.encoder import encode
from regcache_jax.encoders.preprocess import preprocess_map, resize_and_crop
from regcache_jax.evaluation.evaluators.dense import (
    confusion,
    fit_segmentation,
    patch_classes,
    patch_features,
    segmentation_metrics,
)
from regcache_jax.evaluation.evaluators.linear_probe import Probe, class_token, class_token_and_mean, features_of


def identity_probe(classes):
    """A probe whose logits are its inputs."""
    return Probe(np.eye(classes, dtype=np.float32), np.zeros(classes, np.float32), np.float32(0), np.float32(1), 0.0)


@pytest.mark.slow
def test_patches_that_a_plan_deletes_are_filled_in_and_the_others_are_its_own():
    encoder, pictures = small.encoder("dinov2"), small.images(3)
    deleting = encoder.with_plan(small.plan(3))
    kept, found = jax.jit(lambda *given: (encode(*given), patch_features(*given)))(deleting, pictures)
    found = np.asarray(found)
    assert found.shape == (3, 16, 24) and kept.kept.shape == (3, 16)  # class token, two registers, 13 patches
    for picture in range(3):
        places = np.asarray(kept.kept[picture, 3:]) - 3
        np.testing.assert_allclose(found[picture, places], np.asarray(kept.tokens[picture, 3:]), rtol=1e-5, atol=1e-6)
        gone = set(range(16)) - set(places.tolist())
        assert len(gone) == 3 and np.isfinite(found[picture, sorted(gone)]).all()


@pytest.mark.slow
def test_features_of_a_linear_probe_are_the_class_token_and_the_mean_of_the_patches():
    encoder, pictures = small.encoder("dinov2"), small.images(2)
    steps = (encode, class_token, class_token_and_mean, patch_features)
    output, alone, joined, patches = jax.jit(lambda *given: [step(*given) for step in steps])(encoder, pictures)
    tokens = np.asarray(output.tokens)
    np.testing.assert_array_equal(alone, tokens[:, 0])
    np.testing.assert_array_equal(patches, tokens[:, 3:])  # registers are no patches
    expected = np.concatenate([tokens[:, 0], tokens[:, 3:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(joined, expected, rtol=1e-5, atol=1e-6)  # float32 means of 16
    with pytest.raises(UserError, match="has no class token; use --features pooled"):
        features_of("class+mean", small.encoder("siglip"))


def test_a_map_is_cut_as_its_picture_is():
    # a picture whose red says the class of each pixel, enlarged by whole factors: nearest and bicubic agree away from edges
    classes = np.kron(np.arange(24, dtype=np.uint8).reshape(4, 6), np.ones((20, 20), np.uint8))
    for how in ("squash", "shortest"):
        spec = Preprocessing(64, how, "bicubic", 80 if how == "shortest" else 64, HALF, HALF)
        red = resize_and_crop(Image.fromarray(np.stack([classes * 10] * 3, axis=-1)), spec)[..., 0] / 10
        found = preprocess_map(classes, spec)
        inside = np.abs(red - np.round(red)) < 0.01
        assert found.shape == (64, 64) and inside.mean() > 0.4
        assert (found[inside] == np.round(red[inside])).all()


def test_a_patch_has_the_class_of_most_of_its_pixels_the_lower_of_two_and_none_where_most_are_ignored():
    maps = np.zeros((1, 4, 4), np.uint8)
    maps[0, :2, :2] = [[2, 2], [1, 1]]  # two each: the lower
    maps[0, :2, 2:] = [[2, 2], [2, 255]]
    maps[0, 2:, :2] = [[255, 255], [255, 1]]
    assert patch_classes(maps, 2, 2, 3).tolist() == [[1, 2, -1, 0]]


def test_pixels_are_counted_as_scikit_learn_counts_them():
    rng = np.random.default_rng(0)
    maps = rng.choice([0, 1, 2, 255], (5, 6, 6)).astype(np.uint8)
    scores = rng.integers(0, 3, (5, 36, 4)).astype(
        np.float32
    )  # full of ties; class 3 is found now and then, and never there
    counts = confusion(identity_probe(4), scores, maps, patch_size=1, rows=2)
    truth, found = maps.reshape(-1), scores.argmax(-1).reshape(-1)
    counted = truth != 255
    np.testing.assert_array_equal(counts[:, :4], confusion_matrix(truth[counted], found[counted], labels=range(4)))
    assert not counts[:, 4].any()
    metrics = segmentation_metrics(counts)
    assert metrics["mIoU"] == pytest.approx(jaccard_score(truth[counted], found[counted], average="macro"))
    assert metrics["pixel_accuracy"] == pytest.approx(accuracy_score(truth[counted], found[counted]))


def test_a_class_that_is_neither_there_nor_found_does_not_count():
    assert segmentation_metrics(np.array([[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]))["mIoU"] == pytest.approx(
        (3 / 4 + 2 / 3) / 2
    )
    with pytest.raises(UserError, match="no pixel has a class"):
        segmentation_metrics(np.zeros((2, 3), int))


def test_logits_are_spread_over_pixels_between_the_centres_of_patches():
    scores = np.zeros((1, 4, 2), np.float32)
    scores[0, :, 1] = [1, -1, 1, -1]  # class 1 on the left half of a 2 x 2 grid, class 0 on the right
    maps = np.repeat([[1, 1, 0, 0]], 4, axis=0)[None].astype(np.uint8)
    counts = confusion(identity_probe(2), scores, maps, patch_size=2)
    np.testing.assert_array_equal(counts, [[8, 0, 0], [0, 8, 0]])
    scores[0, 0] = np.nan
    counts = confusion(identity_probe(2), scores, maps, patch_size=2)
    assert (
        counts[1, 1] < 8 and counts[1, 2] > 0 and counts.sum() == 16
    )  # what is not a number is no class, and never right


@pytest.mark.slow
def test_a_probe_on_patches_that_say_their_class_finds_all():
    rng = np.random.default_rng(1)
    classes = rng.integers(-1, 3, (20, 9)).astype(np.int32)
    patches = np.eye(3, dtype=np.float32)[classes] + 0.1 * rng.normal(size=(20, 9, 3)).astype(np.float32)
    probe = fit_segmentation(patches, classes, 3)
    known = classes >= 0
    assert (probe.scores(patches[known]).argmax(-1) == classes[known]).all()
    with pytest.raises(UserError, match="no patch of the training pictures"):
        fit_segmentation(patches, np.full_like(classes, -1), 3)
