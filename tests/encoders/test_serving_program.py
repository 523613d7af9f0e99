"""Prepared weights: what a serving program is given, and that nothing changes by it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.plan import Schedule
from regcache_jax.core.scheme import Scheme
from regcache_jax.data.batches import Batch
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.encoders.forms import TILE
from regcache_jax.encoders.serving_program import join_blocks, prepare, serve, split_blocks
from regcache_jax.encoders.vision import serve_image
from regcache_jax.evaluation import loop
from regcache_jax.evaluation.loop import extract_features
from regcache_jax.quantization.quantize import quantize

SCHEMES = {
    "static": Scheme(),
    "asymmetric, a scale a kernel": Scheme(symmetric=False, weights="tensor"),
    "groups": Scheme(activations="group"),
    "integer attention": Scheme(products=("qk", "pv")),
    "two ranges": Scheme(method="ptq4vit"),
    "a site in float": Scheme().keep_in_float([("fc1", 1)]),
}


@pytest.mark.slow
def test_split_blocks_join_again():
    blocks = small.encoder("siglip").params.image.blocks
    jax.tree.map(np.testing.assert_array_equal, join_blocks(split_blocks(blocks)), blocks)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [*((name, jnp.float32) for name in SCHEMES), ("static", jnp.bfloat16)])
def test_prepared_weights_give_the_same_features(name, dtype):
    scheme, images = SCHEMES[name], small.images(8)
    encoder = small.encoder("clip").with_plan(small.plan(2))
    encoder = quantize(encoder, images, scheme).astype(dtype)
    spec, schedule, image = encoder.spec.image, encoder.schedule, encoder.params.image
    assert isinstance(schedule, Schedule) and schedule.stop > schedule.start
    images = jnp.asarray(images[:2], dtype)

    @jax.jit
    def plainly(image, plan, images):
        options = {"scheme": encoder.scheme, "tile": TILE, "unroll": True}
        return serve_image(image, images, spec, schedule, registers=plan.rows(), **options).features

    prepared = prepare(image, encoder.scheme, encoder.plan)
    found = jax.jit(lambda weights, images: serve(weights, images, spec, schedule, encoder.scheme).features)(
        prepared, images
    )
    # the same numbers are multiplied; two programs fuse, and so round, a product and a sum now and then otherwise
    np.testing.assert_allclose(found, plainly(image, encoder.plan, images), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_an_evaluation_runs_prepared_encoders_where_that_pays(parallel, monkeypatch):
    """As on a TPU: the same counts and features from a float, an int8 and a RegCache encoder."""
    plain, images = small.encoder("clip"), small.images(32)
    batches = [Batch(np.asarray(images), np.arange(32) % 4, np.arange(32) < 30, np.arange(32))]
    for encoder in (
        plain,
        quantize(plain, images, Scheme()),
        quantize(plain.with_plan(small.plan(2)), images, Scheme()),
    ):
        here = extract_features(encode_image, encoder, batches, parallel=parallel)
        monkeypatch.setattr(loop, "SERVED_ON", ("cpu",))
        served = extract_features(encode_image, encoder, batches, parallel=parallel)
        monkeypatch.undo()
        # the rows of padded tokens change the order of sums: an integer may fall on the other side of its boundary
        assert served.shape == here.shape and np.median(np.abs(served - here)) < 1e-5
        assert np.abs(served - here).max() < 0.02


@pytest.mark.slow
def test_vectors_are_wide_and_scales_multiplied_out_where_there_is_one_for_all_tokens():
    encoder = quantize(small.encoder("siglip"), small.images(4), Scheme()).astype(jnp.bfloat16)
    blocks = prepare(encoder.params.image, encoder.scheme, None).blocks
    assert len(blocks) == encoder.spec.image.blocks.num_blocks
    layer, scale = blocks[1].mlp.fc1, blocks[1].grids.fc1.scale
    np.testing.assert_array_equal(layer.product_scale, scale * layer.kernel.scale[0])
    assert layer.kernel.values.dtype == jnp.int8 and blocks[1].norm1.scale.dtype == jnp.float32

    grouped = quantize(small.encoder("siglip"), small.images(4), Scheme(activations="group"))
    blocks = prepare(grouped.params.image, grouped.scheme, None).blocks
    assert blocks[0].mlp.fc1.product_scale is None and blocks[0].mlp.fc2.product_scale is None
