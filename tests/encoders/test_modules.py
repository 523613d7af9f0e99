"""The Flax modules: the same tree as the parameter table, the same numbers as the functional towers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.names import to_tree
from regcache_jax.encoders.encoder import init_params
from regcache_jax.encoders.modules import ImageTower, TextTower, TwoTower
from regcache_jax.encoders.parameters import parameter_shapes
from regcache_jax.encoders.text import text_features
from regcache_jax.encoders.vision import image_features

IDS = jnp.asarray([[48, 3, 4, 49, 0, 0]], jnp.int32)


def pictures(spec, count):
    return jnp.asarray((small.images if spec.image.max_patches is None else small.sheets)(count))


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize("kind", small.SPECS)
def test_init_gives_the_tree_of_the_parameter_table(kind):
    spec = small.SPECS[kind]
    ids = None if spec.text is None else IDS
    drawn = jax.eval_shape(TwoTower(spec).init, jax.random.key(0), pictures(spec, 1), ids)["params"]
    assert shapes(drawn) == shapes(to_tree(parameter_shapes(spec)))
    assert shapes(drawn) == shapes(to_tree(jax.eval_shape(lambda rng: init_params(spec, rng), jax.random.key(0))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", small.SPECS)
def test_apply_gives_the_functional_tower_s_features_to_the_last_bit(kind):
    encoder = small.encoder(kind)
    spec, params = encoder.spec, encoder.params
    images = pictures(spec, 2)
    applied, texts = jax.jit(TwoTower(spec).apply)(
        {"params": to_tree(params)}, images, None if spec.text is None else IDS
    )
    functional = jax.jit(lambda params, images: image_features(params, images, spec.image).features)
    np.testing.assert_array_equal(applied, functional(params.image, images))
    assert (texts is None) == (spec.text is None)


@pytest.mark.slow
def test_each_tower_stands_alone():
    encoder, images = small.encoder("clip with text"), jnp.asarray(small.images(2))
    spec, params = encoder.spec, encoder.params
    together = jax.jit(TwoTower(spec).apply)({"params": to_tree(params)}, images, IDS)
    alone = jax.jit(ImageTower(spec.image).apply)({"params": to_tree(params.image)}, images)
    np.testing.assert_allclose(alone, together[0], rtol=1e-5, atol=1e-6)  # another program
    text = jax.jit(TextTower(spec.text).apply)({"params": to_tree(params.text)}, IDS)
    functional = jax.jit(lambda params: text_features(params, IDS, spec.text)[0])(params.text)
    np.testing.assert_array_equal(text, functional)


@pytest.mark.slow
def test_parameters_are_drawn_as_the_table_says():
    image = init_params(small.SPECS["dinov2"], jax.random.key(0)).image
    blocks = image.blocks
    np.testing.assert_array_equal(blocks.norm1.scale, np.ones((3, 24)))
    np.testing.assert_array_equal(blocks.mlp.fc1.bias, np.zeros((3, 40)))
    np.testing.assert_allclose(blocks.layer_scale2, np.full((3, 24), 1e-5), rtol=1e-6)
    for kernel, inputs in ((blocks.attention.out.kernel, 24), (blocks.mlp.fc2.kernel, 40)):
        np.testing.assert_allclose(jnp.std(kernel), inputs**-0.5, rtol=0.05)  # 1728 draws and more: within 3 sigma
    first = [float(leaf.ravel()[0]) for leaf in jax.tree.leaves(image) if leaf.std() > 1e-3]
    assert len(set(first)) == len(first) == 10  # the kernels, tokens and positions, no draw used twice
