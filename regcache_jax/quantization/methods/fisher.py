"""How much an encoder's features feel each output of each layer: what Hessian-guided methods weigh errors with, without labels.

The papers take the Hessian of a classifier's loss, approximated by squared gradients (the Fisher information). An encoder has
no classes, so the loss here is the squared distance of its features from the float ones; its Hessian at zero is J^T J, where J is
the features' derivative, and a squared gradient of the features along a direction of random signs has its diagonal as its mean.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import SITES
from regcache_jax.core.sites import Block, ImageTower
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import Encoder, normalize
from regcache_jax.encoders.vision import image_features
from regcache_jax.quantization.methods.statistics import sampled_rows, site_tokens

SEED = 0
IMAGES = 16
"""At a time: every output of every layer has a gradient of its own."""


class Felt(NamedTuple):
    """Sampled tokens: the sites' inputs, and the features' gradients with respect to the layers' outputs there."""

    inputs: dict[str, Float[Array, "L S C"]]
    gradients: dict[str, Float[Array, "L S M"]]


def with_biases_by_token(blocks: Block, added: dict[str, Float[Array, "L B N ..."]]) -> Block:
    """Blocks whose layers add something of its own to every token's output: biases with axes for images and tokens."""
    layers = {name: layer for site in SITES for name, layer in blocks.layers(site).items()}
    biases = {
        name: added[name] if layer.bias is None else added[name] + layer.bias[:, None, None]
        for name, layer in layers.items()
    }
    return blocks.with_layers({name: layer.replace(bias=biases[name]) for name, layer in layers.items()})


def _zeros(blocks: Block, batch: int, tokens: int) -> dict[str, Float[Array, "L B N ..."]]:
    """Nothing, for every token's output of every layer."""
    layers = {name: layer for site in SITES for name, layer in blocks.layers(site).items()}
    return {
        name: jnp.zeros(
            (len(layer.floats), batch, tokens, *layer.floats.shape[1 + layer.num_inputs :]), layer.floats.dtype
        )
        for name, layer in layers.items()
    }


@functools.partial(jax.jit, static_argnames=("spec", "unit"))
def output_gradients(
    tower: ImageTower,
    images: Float[Array, "B Y X 3"],
    plan: RegisterPlan | None,
    signs: Float[Array, "B E"],
    *,
    spec: ImageSpec,
    unit: bool,
) -> tuple[dict[str, Float[Array, "L B N ..."]], dict[str, Float[Array, "L B N ..."]]]:
    """Gradients of the features along `signs` with respect to every layer's output, and the sites' inputs."""

    def along(added: dict[str, Float[Array, "L B N ..."]]) -> tuple[Float[Array, ""], dict[str, Any]]:
        blocks = with_biases_by_token(tower.blocks, added)
        collect = {site: functools.partial(input_of, name=site) for site in SITES}
        output = image_features(tower.replace(blocks=blocks), images, spec, plan=plan, collect=collect)
        features = normalize(output.features) if unit else output.features.astype(jnp.float32)
        return jnp.sum(features * signs), output.collected

    zeros = _zeros(tower.blocks, images.shape[0], spec.num_tokens)
    return jax.grad(along, has_aux=True)(zeros)


def input_of(trace: BlockTrace, name: str) -> Array:
    """A collector: a site's input, absent tokens zero."""
    inputs = getattr(trace, name)
    return site_tokens(trace, name)[0].reshape(inputs.shape)


def felt_tokens(encoder: Encoder, images: Float[Array | np.ndarray, "_ _ _ 3"]) -> Felt:
    """Up to `SAMPLED_TOKENS` tokens of the first `IMAGES` of some images, one direction an image."""
    spec = encoder.spec.image
    images = jnp.asarray(images[:IMAGES], encoder.dtype)
    signs = jax.random.rademacher(jax.random.key(SEED), (len(images), spec.feature_dim), jnp.float32)
    gradients, inputs = output_gradients(
        encoder.params.image, images, encoder.plan, signs, spec=spec, unit=encoder.spec.normalize
    )
    return Felt(*({name: _sampled(rows) for name, rows in tree.items()} for tree in (inputs, gradients)))


def _sampled(rows: Float[Array, "L B N ..."]) -> Float[Array, "L S M"]:
    flat = rows.astype(jnp.float32).reshape(rows.shape[0], rows.shape[1] * rows.shape[2], -1)
    return flat[:, sampled_rows(flat.shape[1])]
