"""Preprocessing against transformers' processors, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from regcache_jax.core.spec import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from regcache_jax.encoders.preprocess import preprocess, resize_and_crop

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


def test_bilinear_without_antialias_takes_the_nearest_pixels_only():
    column = np.zeros((1, 8, 3), np.uint8)
    column[0, :, :] = np.arange(0, 80, 10)[:, None]
    spec = Preprocessing(2, "squash", "bilinear_tf", 2, HALF, HALF)
    resized = resize_and_crop(Image.fromarray(column), spec)
    # centres of the two halves lie at 1.5 and 5.5: the mean of their two neighbours, nothing from farther off
    np.testing.assert_allclose(resized[0, :, 0], [15.0, 55.0])
