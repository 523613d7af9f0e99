"""The bundled encoder: the numbers of the implementation it was trained with, and the facts its description states."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from regcache_jax.data.emoji import render
from regcache_jax.demo.bundled import SPEC, bundled_model
from regcache_jax.encoders.encoder import encode_image, encode_text
from regcache_jax.encoders.parameters import count_parameters, image_table, text_table
from regcache_jax.encoders.vision import image_features
from regcache_jax.models import folder as checkpoints
from regcache_jax.ops.delete import linf_norm

# Vendor, concept, rendering. The first features, computed once in float32 by the code the encoder was trained with.
PICTURES = (("twemoji", 0, 0), ("noto", 57, 2), ("fluent", 203, 3))
IMAGE_FEATURES = (
    (-0.11039, -0.03260, -0.02572, -0.02601, -0.02592, -0.08685),
    (0.11470, -0.13539, -0.13327, -0.02244, 0.07540, -0.07710),
    (0.09327, 0.11857, 0.09552, 0.07187, -0.04411, -0.07193),
)
TEXTS = ("an emoji of volcano", "a drawing of a sunflower")
TEXT_FEATURES = (
    (-0.00033, 0.03635, -0.05805, -0.02405, -0.02392, -0.01577),
    (-0.05521, 0.04560, 0.08361, -0.02834, -0.05781, 0.05138),
)
BLOCK_INPUTS = (
    5.888,
    12.479,
    30.956,
    29.473,
    28.317,
    237.373,
    300.602,
    300.602,
)  # largest magnitude at each block's input


@pytest.fixture(scope="module")
def model() -> checkpoints.Model:
    return checkpoints.load(bundled_model())


@pytest.fixture(scope="module")
def images(model):
    return jnp.asarray(np.stack([model.preprocess(Image.fromarray(render(*picture))) for picture in PICTURES]))


@pytest.mark.slow
def test_image_features_are_those_of_the_implementation_it_was_trained_with(model, images):
    features = encode_image(model.encoder, images)[:, :6]
    np.testing.assert_allclose(features, IMAGE_FEATURES, atol=1e-5)  # the numbers are rounded to five places


@pytest.mark.slow
def test_text_features_are_those_of_the_implementation_it_was_trained_with(model):
    features = encode_text(model.encoder, jnp.asarray(model.tokenize(list(TEXTS))))[:, :6]
    np.testing.assert_allclose(features, TEXT_FEATURES, atol=1e-5)  # the numbers are rounded to five places


@pytest.mark.slow
def test_outliers_enter_the_residual_stream_in_block_4(model, images):
    spec = model.encoder.spec.image
    output = image_features(
        model.encoder.params.image, images, spec, collect={"norm": lambda trace: linf_norm(trace.hidden)}
    )
    largest = output.collected["norm"].max(axis=(1, 2))
    np.testing.assert_allclose(largest, BLOCK_INPUTS, rtol=1e-3)  # float32 sums in another order, written with 4 digits


def test_its_norms_carry_the_factor_48_in_one_dimension_of_blocks_5_to_7(model):
    blocks = model.encoder.params.image.blocks
    for norm in ("norm1", "norm2"):
        gains = np.sort(np.abs(np.asarray(getattr(blocks, norm).scale)), axis=-1)
        assert (gains[5:, -1] > 10 * gains[5:, -2]).all()
        assert (gains[:5, -1] < 3 * gains[:5, -2]).all()


def test_the_folder_has_the_spec_that_the_code_has(model):
    assert model.encoder.spec == SPEC
    assert model.encoder.scheme is None and model.encoder.plan is None


def test_it_has_1_8_million_image_and_a_quarter_million_text_parameters():
    assert SPEC.text is not None
    assert round(count_parameters(image_table(SPEC.image)) / 1e6, 1) == 1.8
    assert round(count_parameters(text_table(SPEC.text)) / 1e6, 2) == 0.25


def test_weights_were_shipped_in_float16_and_are_finite(model):
    for leaf in (
        model.encoder.params.image.blocks.mlp.fc1.kernel,
        model.encoder.params.text.embedding,
    ):
        values = np.asarray(leaf)
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values, values.astype(np.float16).astype(np.float32))
    assert float(model.encoder.params.logit_scale) == pytest.approx(2.673828125)  # log of the temperature


@pytest.mark.slow
def test_data_in_the_package_stays_below_ten_megabytes():
    folder = bundled_model().parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 10e6
