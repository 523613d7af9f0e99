"""Small random encoders with every option a family can have, and images for them."""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from regcache_jax.core.names import from_tree, to_tree
from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.core.spec import HALF, BlockSpec, EncoderSpec, ImageSpec, Preprocessing
from regcache_jax.encoders.encoder import Encoder, init_params
from regcache_jax.encoders.vision import ImageOutput, image_features

BLOCKS = BlockSpec(width=24, num_blocks=3, num_heads=3, mlp_width=40, activation="gelu", norm_eps=1e-6)
FAMILIES = {
    "clip": ({"pre_norm": True, "class_token": True, "pooling": "class", "projection": 16, "patch_bias": False}, {}),
    "siglip": ({"class_token": False, "pooling": "map"}, {"activation": "gelu_tanh"}),
    "dinov2": ({"class_token": True, "pooling": "class", "trained_registers": 2}, {"layer_scale": True}),
    "dinov2-swiglu": ({"class_token": True, "pooling": "mean"}, {"gated_mlp": True, "activation": "silu"}),
    "no biases": ({"class_token": False, "pooling": "mean"}, {"activation": "quick_gelu"}),
}


def encoder(family: str = "clip", seed: int = 0) -> Encoder:
    """An encoder whose parameters are all drawn, norms and LayerScale around one, with two outlying channels."""
    image, blocks = FAMILIES[family]
    spec = EncoderSpec(
        family,
        "clip",
        ImageSpec(image_size=16, patch_size=4, blocks=dataclasses.replace(BLOCKS, **blocks), **image),
        Preprocessing(16, "squash", "bilinear", 16, HALF, HALF),
    )
    params = to_tree(init_params(spec, jax.random.key(seed)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        last = path[-1].key
        noise = rng.standard_normal(leaf.shape)
        if last in ("scale", "layer_scale1", "layer_scale2"):
            return 1.0 + 0.3 * noise
        return np.asarray(leaf) + 0.3 * noise if last == "bias" else np.asarray(leaf)

    params = jax.tree_util.tree_map_with_path(draw, params)
    for norm in ("norm1", "norm2"):
        leaves = params["image"]["blocks"][norm]
        leaves["scale"][:, :2] *= 8.0
    if family == "no biases":
        for group in ("attention", "mlp"):
            for layer in params["image"]["blocks"][group].values():
                layer.pop("bias", None)
    return Encoder(from_tree(jax.tree.map(lambda leaf: jnp.asarray(leaf.astype(np.float32)), params)), spec=spec)


def images(count: int = 24, seed: int = 0) -> jax.Array:
    """Preprocessed images."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, (count, 16, 16, 3))
    return jnp.asarray(drawn.astype(np.float32))


def plan(delete_count: int = 0) -> RegisterPlan:
    """Two random registers from block 1 on."""
    key, value = np.random.default_rng(7).standard_normal((2, 3, 2, 3, 8)).astype(np.float32)
    return make_plan(
        jnp.asarray(key), jnp.asarray(value), copies=3.0, start=1, delete_block=1, delete_count=delete_count
    )


@functools.partial(jax.jit, static_argnames="names")
def search_form(encoder: Encoder, images: jax.Array, names: tuple[str, ...] = ()) -> ImageOutput:
    """The image tower in the search form, as one program; `names` are the fields of a block's trace to collect."""
    collect = {name: operator.attrgetter(name) for name in names}
    params, spec = encoder.params.image, encoder.spec.image
    return image_features(params, images, spec, plan=encoder.plan, scheme=encoder.scheme, collect=collect)
