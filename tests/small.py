"""Small encoders of every kind, random plans and integer kernels for the tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from regcache_jax.core.names import from_names, to_names
from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.core.spec import HALF, BlockSpec, EncoderSpec, ImageSpec, Preprocessing, TextSpec
from regcache_jax.encoders.encoder import Encoder, init_params

BLOCKS = BlockSpec(width=32, num_blocks=4, num_heads=4, mlp_width=64, activation="gelu_tanh", norm_eps=1e-6)
PICTURE = Preprocessing(32, "squash", "bilinear", 32, HALF, HALF)


def _spec(name: str, image: ImageSpec, text: TextSpec | None = None, family: str = "siglip") -> EncoderSpec:
    return EncoderSpec(name, family, image, PICTURE, text)


SPECS = {
    "map": _spec(
        "map",
        ImageSpec(32, 8, BLOCKS, class_token=False, pooling="map"),
        TextSpec(50, 6, BLOCKS, "last", projection=32, projection_bias=True),
    ),
    "mean": _spec("mean", ImageSpec(32, 8, BLOCKS, class_token=False, pooling="mean")),
    "clip": _spec(
        "clip",
        ImageSpec(32, 8, BLOCKS, True, "class", patch_bias=False, pre_norm=True, projection=16),
        TextSpec(50, 6, BlockSpec(32, 2, 4, 64, "quick_gelu", 1e-5, causal=True), "eot", eot_id=49, projection=16),
        "clip",
    ),
    "dino": _spec(
        "dino",
        ImageSpec(
            32, 8, BlockSpec(32, 4, 4, 48, "silu", 1e-6, layer_scale=True, gated_mlp=True), True, "class",
            trained_registers=2, position_grid=7,
        ),
        family="dinov2",
    ),
}  # fmt: skip
KINDS = list(SPECS)


def random_tree(tree, seed: int):
    """Every leaf drawn at random, norms and biases too: mistakes hide behind ones and zeros. In NumPy, which compiles nothing."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    rng = np.random.default_rng(seed)
    drawn = [leaf + rng.normal(0, 0.3, leaf.shape) * (0.2 + np.std(leaf)) for leaf in leaves]
    return jax.tree.unflatten(structure, [jnp.asarray(leaf.astype(np.float32)) for leaf in drawn])


def small_encoder(kind: str, seed: int = 0) -> Encoder:
    """A small encoder of one kind with random weights."""
    return Encoder(random_tree(init_params(SPECS[kind], jax.random.key(seed)), seed), spec=SPECS[kind])


def pictures(count: int = 4, seed: int = 0) -> np.ndarray:
    """Preprocessed random pictures."""
    return np.random.default_rng(seed).normal(size=(count, 32, 32, 3)).astype(np.float32)


def random_hidden(kind: str, batch: int = 2, seed: int = 0) -> jax.Array:
    """A random residual stream."""
    spec = SPECS[kind].image
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, spec.num_tokens, 32)), jnp.float32)


def random_plan(seed: int = 0, num_registers: int = 1, **numbers) -> RegisterPlan:
    """A plan with random rows for the small encoders."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2, 4, num_registers, 4, 8)).astype(np.float32)
    return make_plan(jnp.asarray(rows[0]), jnp.asarray(rows[1]), **numbers)


def with_leaves(encoder: Encoder, **changed) -> Encoder:
    """The encoder with some leaves changed, by their names below the image tower (`blocks__norm1__bias=function or array`)."""
    named = to_names(encoder.params)
    for name, new in changed.items():
        path = f"image/{name.replace('__', '/')}"
        named[path] = jnp.asarray(new(named[path]) if callable(new) else new)
    return encoder.replace(params=from_names(named))
