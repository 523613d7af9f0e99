"""Rotation (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 4): outlying channels spread over all of them.

The residual stream is rotated by an orthogonal matrix, and every kernel that reads or writes it takes the inverse; each head's
values are rotated as well, and its rows of `out`. What differs from QuaRot: LayerNorm subtracts a mean, so the matrix must fix
the vector of ones (ours is random within its complement, not a Hadamard matrix); norms' scales and LayerScale are folded into the
kernels; the stream is rotated once before the first block and back after the last (two products of D x D a token), so that
embeddings, pooling and dense features stay as they were; the input of `fc2` comes from an activation function and is not rotated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Block, Norm
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.methods.folding import NORMS, with_blocks
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed

SEED = 0


def random_orthogonal(size: int, rng: np.random.Generator) -> Float[np.ndarray, "n n"]:
    """A matrix drawn evenly from all orthogonal ones."""
    matrix, triangle = np.linalg.qr(rng.standard_normal((size, size)))
    return matrix * np.sign(np.diag(triangle))


def rotation_that_keeps_means(size: int, rng: np.random.Generator) -> Float[np.ndarray, "n n"]:
    """A random orthogonal matrix that maps the vector of ones to itself, from either side."""
    basis = np.eye(size)
    basis[:, 0] = 1.0
    basis = np.linalg.qr(basis)[0]  # first column: ones / sqrt(size), up to its sign
    inner = np.eye(size)
    inner[1:, 1:] = random_orthogonal(size - 1, rng)
    return basis @ inner @ basis.T


def hadamard(size: int) -> Float[np.ndarray, "n n"]:
    """Sylvester's Hadamard matrix over sqrt(size), for a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def rotate_values(encoder: Encoder, matrix: Float[np.ndarray, "K K"]) -> Encoder:
    """Rotates every head's values (the plan's too) and takes the rotation back in `out`."""
    blocks = encoder.params.image.blocks
    rotation = jnp.asarray(matrix, jnp.float32)
    out = blocks.attention.out
    value = jax.tree.map(
        lambda leaf: jnp.einsum("...k,kj->...j", leaf, rotation.astype(leaf.dtype)), blocks.attention.value
    )
    out = out.replace(kernel=jnp.einsum("lhkd,kj->lhjd", out.floats, rotation.astype(out.floats.dtype)))
    plan = encoder.plan
    if plan is not None:
        plan = plan.replace(value=plan.value @ rotation.astype(plan.value.dtype))
    return with_blocks(encoder.replace(plan=plan), blocks.with_layers({"value": value, "out": out}))


def fold_norms(blocks: Block) -> Block:
    """Norms' scales and biases folded into the kernels after them, LayerScale into those before it."""
    folded = {}
    for site, norm_name in NORMS.items():
        norm = getattr(blocks, norm_name)
        for name, layer in blocks.layers(site).items():
            kernel, ending = layer.floats, (1,) * (layer.floats.ndim - 2)
            bias = layer.bias
            if norm.bias is not None:
                moved = jnp.sum(kernel * norm.bias.reshape(*norm.bias.shape, *ending), axis=1)
                bias = moved if bias is None else bias + moved
            folded[name] = layer.replace(kernel=kernel * norm.scale.reshape(*norm.scale.shape, *ending), bias=bias)
        plain = Norm(jnp.ones_like(norm.scale), None if norm.bias is None else jnp.zeros_like(norm.bias))
        blocks = blocks.replace(**{norm_name: plain})
    for scale_name, name, layer in (
        ("layer_scale1", "out", blocks.attention.out),
        ("layer_scale2", "fc2", blocks.mlp.fc2),
    ):
        scale = getattr(blocks, scale_name)
        if scale is not None:
            middle = (1,) * (layer.floats.ndim - 2)
            folded[name] = layer.replace(
                kernel=layer.floats * scale.reshape(len(scale), *middle, -1),
                bias=None if layer.bias is None else layer.bias * scale,
            )
            blocks = blocks.replace(**{scale_name: jnp.ones_like(scale)})
    return blocks.with_layers(folded)


def rotate_residual(encoder: Encoder, matrix: Float[np.ndarray, "D D"]) -> Encoder:
    """Rotates the residual stream inside the blocks. `matrix` must keep means. Raises UserError where the plan deletes tokens:
    the largest channel of a token, which deletion goes by, is another one after a rotation."""
    if encoder.schedule is not None and encoder.schedule.delete_count:
        raise UserError(
            "the register plan deletes tokens by the largest channel, which a rotation changes; use the plan without "
            "deletion, or search for a plan on the rotated encoder"
        )
    blocks = fold_norms(encoder.params.image.blocks)
    rotation = jnp.asarray(matrix, jnp.float32)
    read = {name: layer for site in NORMS for name, layer in blocks.layers(site).items()}
    written = {"out": blocks.attention.out, "fc2": blocks.mlp.fc2}
    turned = {
        name: layer.replace(kernel=jnp.einsum("ld...,de->le...", layer.floats, rotation.astype(layer.floats.dtype)))
        for name, layer in read.items()
    }
    turned |= {
        name: jax.tree.map(lambda leaf: jnp.einsum("...d,de->...e", leaf, rotation.astype(leaf.dtype)), layer)
        for name, layer in written.items()
    }
    image = encoder.params.image.replace(blocks=blocks.with_layers(turned), rotation=rotation)
    return encoder.replace(params=encoder.params.replace(image=image))


def rotate(encoder: Encoder, seen: Observed, scheme: Scheme) -> Encoder:
    """Rotates values (by a Hadamard matrix where the head size is a power of two) and the residual stream. Raises UserError where a norm
    stands between values and what reads them."""
    rng = np.random.default_rng(SEED)
    blocks = encoder.spec.image.blocks
    if blocks.inner_norms:
        raise UserError(
            f"{encoder.spec.name} norms what attention has mixed, and no rotation of values passes a norm; take another method"
        )
    size = blocks.head_dim
    encoder = rotate_residual(encoder, rotation_that_keeps_means(blocks.width, rng))
    return rotate_values(encoder, hadamard(size) if size & (size - 1) == 0 else random_orthogonal(size, rng))


METHOD = Method("rotation", "residual stream and values rotated, outlying channels spread", prepare=rotate)
