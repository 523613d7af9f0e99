"""Preprocessing against transformers' processors, and by hand."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from regcache_jax.encoders import preprocess as preprocessing
from regcache_jax.encoders.preprocess import open_picture, preprocess, preprocess_map, resize_and_crop

CASES = {
    "clip": (
        Preprocessing(32, "shortest", "bicubic", 32, CLIP_MEAN, CLIP_STD),
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 32}, "crop_size": 32},
    ),
    "siglip": (
        Preprocessing(32, "squash", "bicubic", 32, HALF, HALF),
        "SiglipImageProcessorPil",
        {"size": {"height": 32, "width": 32}, "resample": 3},
    ),
    "siglip2": (
        Preprocessing(32, "squash", "bilinear", 32, HALF, HALF),
        "SiglipImageProcessorPil",
        {"size": {"height": 32, "width": 32}, "resample": 2},
    ),
    "dinov2": (
        Preprocessing(28, "shortest", "bicubic", 32, IMAGENET_MEAN, IMAGENET_STD),
        "BitImageProcessorPil",
        {
            "size": {"shortest_edge": 32}, "crop_size": 28, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD,
        },
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", [(50, 37), (37, 50), (20, 20), (33, 32), (301, 40)])
@pytest.mark.parametrize("family", CASES)
def test_pictures_equal_transformers_to_within_one_grey_level(family, size):
    import transformers

    spec, processor, settings = CASES[family]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    expected = getattr(transformers, processor)(**settings)(Image.fromarray(pixels), return_tensors="np")[
        "pixel_values"
    ][0]
    ours = preprocess(pixels, spec)
    grey_level = 1.0 / 255.0 / np.asarray(spec.std)
    assert (np.abs(ours - expected.transpose(1, 2, 0)) <= grey_level * 1.001).all()


@pytest.mark.parametrize("family", CASES)
def test_levels_are_divided_by_255_less_mean_over_std_to_the_last_bit(family):
    spec = CASES[family][0]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 37, 3), np.uint8))
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    expected = (resize_and_crop(picture, spec) / np.float32(255) - mean) / std
    assert np.array_equal(preprocess(picture, spec), expected)


def test_a_picture_of_the_caller_s_own_is_left_as_it_is():
    picture = Image.new("RGB", (10, 4))
    picture.getexif()[0x0112] = 6  # a quarter turn
    assert open_picture(picture).size == (4, 10)
    assert picture.size == (10, 4) and picture.getexif()[0x0112] == 6


def test_bilinear_without_antialias_takes_the_nearest_pixels_only():
    column = np.zeros((1, 8, 3), np.uint8)
    column[0, :, :] = np.arange(0, 80, 10)[:, None]
    spec = Preprocessing(2, "squash", "bilinear_tf", 2, HALF, HALF)
    resized = resize_and_crop(Image.fromarray(column), spec)
    # centres of the two halves lie at 1.5 and 5.5: the mean of their two neighbours, nothing from farther off
    np.testing.assert_allclose(resized[0, :, 0], [15.0, 55.0])


@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("how", ["squash", "shortest"])
@pytest.mark.parametrize("size", [(40, 31), (31, 40), (1, 700), (700, 1), (3, 150), (9, 5)])
def test_a_part_that_is_resized_alone_has_the_bits_of_pillows_two_steps(monkeypatch, size, how, filter):
    monkeypatch.setattr(preprocessing, "MOST_RESIZED", 0)
    spec = Preprocessing(13, how, filter, 17, HALF, HALF)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    rows, columns = preprocessing.axes(picture.height, picture.width, spec)
    first = (picture.width, rows.wanted) if picture.height > picture.width else (columns.wanted, picture.height)
    resized = picture.resize(first, preprocessing.FILTERS[filter])
    resized = resized.resize((columns.wanted, rows.wanted), preprocessing.FILTERS[filter])
    box = (columns.first, rows.first, columns.first + columns.kept, rows.first + rows.kept)
    np.testing.assert_array_equal(resize_and_crop(picture, spec), np.asarray(resized.crop(box)))


@pytest.mark.slow
@pytest.mark.parametrize("filter", ["bicubic", "bilinear_tf"])
@pytest.mark.parametrize("how", ["squash", "shortest"])
def test_a_picture_of_one_by_two_million_costs_what_its_crop_costs(how, filter):
    spec = Preprocessing(64, how, filter, 64, HALF, HALF)
    row = np.full((1, 2_000_000, 3), 51, np.uint8)
    for pixels in (row, row.swapaxes(0, 1)):
        tracemalloc.start()
        found = preprocess(pixels, spec)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20  # the picture is 6 MB; resized it would be 25 GB
        tracemalloc.stop()
        np.testing.assert_allclose(found, 51 / 255 * 2 - 1, atol=1e-6)
        assert preprocess_map(pixels[..., 0], spec).shape == (64, 64)


def test_more_pixels_than_are_read_are_refused_before_they_are_unpacked():
    whole = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(whole, "png")
    with pytest.raises(UserError, match="has more than 89,478,485 pixels"):
        open_picture(whole.getvalue(), "bomb.png")


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3), np.float32), np.zeros((3, 4, 5), np.uint8), np.zeros(4, np.uint8)]
)
def test_an_array_that_is_no_picture_is_refused(pixels):
    with pytest.raises(UserError, match=r"must be an array \[Y, X, 3\]"):
        open_picture(pixels)
