"""Quantised pooling head and text tower."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.spec import TextSpec
from regcache_jax.encoders.encoder import Encoder, encode_image, encode_text, init_params
from regcache_jax.models.folder import load, save
from regcache_jax.quantization.quantize import quantize

IDS = jnp.asarray(np.random.default_rng(0).integers(1, 40, (12, 7)), jnp.int32)


def with_text():
    text = TextSpec(40, 7, small.BLOCKS, pooling="last", projection=24)
    image = small.encoder("siglip")
    spec = dataclasses.replace(
        image.spec, text=dataclasses.replace(text, blocks=dataclasses.replace(small.BLOCKS, causal=True))
    )
    params = init_params(spec, jax.random.key(1))
    return Encoder(params.replace(image=image.params.image), spec=spec)


def integers(text):
    return [line for line in text.splitlines() if "dot_general" in line and "xi8>" in line]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"activations": "token"}, {"activations": "group"}])
def test_head_and_text_tower_multiply_integers_and_stay_near_their_float_selves(options):
    encoder, images = with_text(), small.images(16)
    scheme = Scheme(also=("head", "text"), **options)
    quantized = quantize(encoder, images, scheme, texts=IDS)
    blocks_alone = quantize(encoder, images, dataclasses.replace(scheme, also=()))
    for encode, inputs in ((encode_image, images), (encode_text, IDS)):
        cosine = jnp.sum(encode(quantized, inputs) * encode(encoder, inputs), axis=-1)
        assert float(cosine.min()) > 0.98  # eight bits, outlying channels
        counts = [len(integers(jax.jit(encode).lower(each, inputs).as_text())) for each in (blocks_alone, quantized)]
        # head: key, value, out, fc1, fc2; text: one scan of six, where before there was none
        assert counts[1] - counts[0] == (5 if encode is encode_image else 6)
    head = quantized.params.image.head
    assert head.attention.query.kernel.dtype == jnp.float32  # the probe's, the same for every image
    assert head.mlp.fc1.kernel.values.dtype == jnp.int8
    np.testing.assert_array_equal(head.probe, encoder.params.image.head.probe)


@pytest.mark.slow
def test_the_head_by_hand():
    encoder, images = small.encoder("siglip"), small.images(8)
    quantized = quantize(encoder, images, Scheme(also=("head",)))
    head = quantized.params.image.head
    floats = encoder.params.image.head
    kernel = np.asarray(floats.mlp.fc1.kernel, np.float64)
    scale = np.abs(kernel).max(axis=0) / 127
    np.testing.assert_allclose(head.mlp.fc1.kernel.scale[0], scale, rtol=1e-6)
    np.testing.assert_array_equal(head.mlp.fc1.kernel.values, np.round(kernel / scale))
    assert [head.grids.of(site).scale.shape for site in SITES] == [()] * 4


@pytest.mark.slow
def test_quantised_parts_are_saved_and_loaded(tmp_path):
    encoder, images = with_text(), small.images(8)
    quantized = quantize(encoder, images, Scheme(symmetric=False, also=("head", "text")), texts=IDS)
    save(tmp_path / "model", quantized)
    again = load(tmp_path / "model").encoder
    np.testing.assert_array_equal(encode_image(again, images), encode_image(quantized, images))
    np.testing.assert_array_equal(encode_text(again, IDS), encode_text(quantized, IDS))


@pytest.mark.slow
def test_parts_that_are_not_there_and_nothing_to_calibrate_on_are_refused():
    images = small.images(8)
    for encoder, part, message in (
        (small.encoder("clip"), "head", "no attention pooling"),
        (small.encoder("siglip"), "text", "no transformer text tower"),
        (with_text(), "text", "give `texts`"),
    ):
        with pytest.raises(UserError, match=message):
            quantize(encoder, images, Scheme(also=(part,)))
    with pytest.raises(UserError, match="known are head, text"):
        Scheme(also=("tail",))
