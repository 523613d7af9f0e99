"""One family of small encoders: every option that a family can have, pictures and plans for them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from regcache_jax.core.names import from_names, from_tree, to_names, to_tree
from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.core.spec import HALF, BlockSpec, EncoderSpec, ImageSpec, Preprocessing, Rotary, TextSpec
from regcache_jax.encoders.encoder import Encoder, init_params
from regcache_jax.encoders.families import naflex
from regcache_jax.encoders.sheets import sheet_of
from regcache_jax.encoders.vision import ImageOutput, image_features

BLOCKS = BlockSpec(width=24, num_blocks=3, num_heads=3, mlp_width=40, activation="gelu", norm_eps=1e-6)
TANH = dataclasses.replace(BLOCKS, activation="gelu_tanh")
PICTURE = Preprocessing(16, "squash", "bilinear", 16, HALF, HALF)


def _image(blocks: BlockSpec, class_token: bool, pooling: str, **options) -> ImageSpec:
    return ImageSpec(16, 4, blocks, class_token, pooling, **options)


IMAGES = {
    "clip": _image(BLOCKS, True, "class", pre_norm=True, projection=16, patch_bias=False),
    "siglip": _image(TANH, False, "map"),
    "dinov2": _image(
        dataclasses.replace(BLOCKS, layer_scale=True), True, "class", trained_registers=2, position_grid=7
    ),
    "dinov2-swiglu": _image(dataclasses.replace(BLOCKS, gated_mlp=True, activation="silu"), True, "mean"),
    "dinov3": _image(
        dataclasses.replace(BLOCKS, layer_scale=True, qkv_bias="qv", rotary=Rotary(100.0)),
        True,
        "class",
        trained_registers=2,
        position_table=False,
    ),
    "no biases": _image(
        dataclasses.replace(BLOCKS, activation="quick_gelu", qkv_bias="none", bias=False), False, "mean"
    ),
    "rms": _image(
        dataclasses.replace(
            BLOCKS, activation="silu", gated_mlp=True, qkv_bias="none", bias=False, norm="rms", qk_norm="width"
        ),
        False,
        "mean",
        patch_norm=True,
    ),
    "inner norms": _image(
        dataclasses.replace(
            BLOCKS, qkv_bias="qv", qk_norm="head", inner_norms=True, rotary=Rotary(100.0, "interleaved")
        ),
        True,
        "class",
        patch_norm=True,
    ),
}
KINDS = list(IMAGES)
TEXTS = {
    "clip": TextSpec(50, 6, BlockSpec(24, 2, 3, 40, "quick_gelu", 1e-5, causal=True), "eot", eot_id=49, projection=16),
    "siglip": TextSpec(50, 6, TANH, "last", projection=24, projection_bias=True),
}
TOWER = _image(dataclasses.replace(BLOCKS, activation="quick_gelu"), True, "none", pre_norm=True, final_norm=False)
"""As LLaVA's: its patches are read, before the final norm."""
INTERN = _image(dataclasses.replace(BLOCKS, layer_scale=True), True, "none", final_norm=False)
VIT = _image(BLOCKS, True, "class")
FURTHER = _image(
    BLOCKS,
    True,
    "class_mean",
    trained_registers=2,
    further=dataclasses.replace(
        BLOCKS, num_blocks=1, mlp_width=32, activation="silu", gated_mlp=True, layer_scale=True, qkv_bias="none"
    ),
)
"""As dino.txt's."""
PROBE = _image(dataclasses.replace(BLOCKS, norm="rms", bias=False), False, "probe", projection=16)
"""As that of an AIMv2 with texts."""
NAFLEX = naflex(EncoderSpec("naflex", "siglip", IMAGES["siglip"], PICTURE, TEXTS["siglip"]), "bilinear", max_patches=20)
SHAPES = ((4, 5), (2, 9), (17, 1), (3, 3), (1, 12))
"""Rows and columns of patches of pictures of several shapes."""
SPECS = (
    {kind: EncoderSpec(kind, "clip", image, PICTURE) for kind, image in {**IMAGES, "tower": TOWER}.items()}
    | {"intern": EncoderSpec("intern", "vit", INTERN, PICTURE, normalize=False)}
    | {
        "further": EncoderSpec("further", "dinov3", FURTHER, PICTURE),
        "probe": EncoderSpec("probe", "aimv2", PROBE, PICTURE),
    }
    | {"naflex": NAFLEX, "vit": EncoderSpec("vit", "vit", VIT, PICTURE, normalize=False, num_classes=5)}
    | {
        f"{kind} with text": EncoderSpec(f"{kind} with text", kind, IMAGES[kind], PICTURE, text)
        for kind, text in TEXTS.items()
    }
)


@functools.cache
def encoder(kind: str = "clip", seed: int = 0) -> Encoder:
    """An encoder whose parameters are all drawn, norms and LayerScale around one, with two outlying channels."""
    params = to_tree(init_params(SPECS[kind], jax.random.key(seed)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        last = path[-1].key
        noise = rng.standard_normal(leaf.shape)
        if last in ("scale", "layer_scale1", "layer_scale2"):
            return 1.0 + 0.3 * noise
        return np.asarray(leaf) + 0.3 * noise if last == "bias" else np.asarray(leaf)

    params = jax.tree_util.tree_map_with_path(draw, params)
    for norm in ("norm1", "norm2"):
        params["image"]["blocks"][norm]["scale"][:, :2] *= 8.0
    return Encoder(from_tree(jax.tree.map(lambda leaf: jnp.asarray(leaf.astype(np.float32)), params)), spec=SPECS[kind])


def images(count: int = 24, seed: int = 0) -> jax.Array:
    """Preprocessed images."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, (count, 16, 16, 3))
    return jnp.asarray(drawn.astype(np.float32))


def sheets(count: int = 24, seed: int = 0, max_patches: int = 20) -> jax.Array:
    """Preprocessed pictures of several shapes, as sheets of so many lines."""
    rng, size = np.random.default_rng(seed), NAFLEX.image.patch_size
    shapes = itertools.islice(itertools.cycle(SHAPES), count)
    drawn = (rng.uniform(-1, 1, (rows * size, columns * size, 3)) for rows, columns in shapes)
    return jnp.asarray(np.stack([sheet_of(each, size, max_patches) for each in drawn]))


def hidden(kind: str, batch: int = 2, seed: int = 0) -> jax.Array:
    """A random residual stream."""
    drawn = np.random.default_rng(seed).normal(size=(batch, IMAGES[kind].num_tokens, 24))
    return jnp.asarray(drawn.astype(np.float32))


def random_plan(seed: int = 0, num_registers: int = 1, **numbers) -> RegisterPlan:
    """A plan with random rows."""
    key, value = np.random.default_rng(seed).standard_normal((2, 3, num_registers, 3, 8)).astype(np.float32)
    return make_plan(jnp.asarray(key), jnp.asarray(value), **numbers)


def plan(delete_count: int = 0) -> RegisterPlan:
    """Two random registers from block 1 on."""
    return random_plan(7, 2, copies=3.0, start=1, delete_block=1, delete_count=delete_count)


def with_leaves(encoder: Encoder, **changed) -> Encoder:
    """The encoder with some leaves changed, by their names below the image tower (`blocks__norm1__bias=function or array`)."""
    named = to_names(encoder.params)
    for name, new in changed.items():
        path = f"image/{name.replace('__', '/')}"
        named[path] = jnp.asarray(new(named[path]) if callable(new) else new)
    return encoder.replace(params=from_names(named))


@functools.partial(jax.jit, static_argnames="names")
def search_form(encoder: Encoder, images: jax.Array, names: tuple[str, ...] = ()) -> ImageOutput:
    """The image tower in the search form, as one program; `names` are the fields of a block's trace to collect."""
    collect = {name: operator.attrgetter(name) for name in names}
    params, spec = encoder.params.image, encoder.spec.image
    return image_features(params, images, spec, plan=encoder.plan, scheme=encoder.scheme, collect=collect)
