"""Changes of units that leave the float encoder's function alone: a site's input divided, what reads it multiplied."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Dense, Norm
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.ops.integers import largest_integer

NORMS = {"qkv": "norm1", "fc1": "norm2"}
"""The norm whose output is a site's input, in every block."""


def norm_before(blocks: Block, site: str) -> Norm | None:
    """The norm whose output is a site's input; None where there is none."""
    inner = {"out": blocks.attention.norm, "fc2": blocks.mlp.norm}
    return inner[site] if site in inner else getattr(blocks, NORMS[site])


def with_norm(blocks: Block, site: str, norm: Norm) -> Block:
    """The blocks with another norm in front of a site."""
    if site in NORMS:
        return blocks.replace(**{NORMS[site]: norm})
    group = "attention" if site == "out" else "mlp"
    return blocks.replace(**{group: getattr(blocks, group).replace(norm=norm)})


def divisible_sites(scheme: Scheme) -> tuple[str, ...]:
    """Sites whose channels may be divided without harm: not `out` where values are rounded themselves, as a channel that is small
    once mixed may be large in a token that nobody attends to."""
    return tuple(site for site in SITES if site != "out" or "pv" not in scheme.products)


def at_least_a_step(ranges: Float[Array, "*L C"], bits: int) -> Float[Array, "*L C"]:
    """Ranges of channels of which none is below a quantiser's step (of so many bits) for the median channel.

    Dividing a channel that is next to zero by its range would make the noise there, which the rounding of earlier layers brings and
    no calibration of a float encoder sees, larger than all other channels; where a token has its own scale, it then takes
    all of that."""
    step = jnp.median(ranges, axis=-1, keepdims=True) / largest_integer(bits)
    return jnp.maximum(ranges, jnp.maximum(step, 1e-6))


def with_blocks(encoder: Encoder, blocks: Block) -> Encoder:
    """The same encoder with other blocks."""
    return encoder.replace(params=encoder.params.replace(image=encoder.params.image.replace(blocks=blocks)))


def divide_inputs(encoder: Encoder, site: str, factors: Float[Array, "L C"]) -> Encoder:
    """Divides every channel of a site's input by a factor and multiplies the kernels that read it.

    The division goes where it costs nothing: into the norm before a site, as there is one before `qkv` and `fc1`; else into the value
    projection (and the plan's value rows) before `out`, as attention mixes channels alike; into the ungated half of a gated MLP
    before `fc2`. After an activation function it stays a product with a constant vector, `fc2_multiplier`, which a compiler fuses."""
    blocks, plan = encoder.params.image.blocks, encoder.plan
    read = {name: layer.replace(kernel=_scaled(layer, factors)) for name, layer in blocks.layers(site).items()}
    blocks = blocks.with_layers(read)
    if (norm := norm_before(blocks, site)) is not None:
        blocks = with_norm(blocks, site, jax.tree.map(lambda leaf: leaf / factors.astype(leaf.dtype), norm))
    elif site == "out":
        by_head = factors.reshape(len(factors), encoder.spec.image.blocks.num_heads, -1)
        blocks = blocks.with_layers({"value": _divided(blocks.attention.value, by_head)})
        if plan is not None:
            plan = plan.replace(value=plan.value / by_head[:, None].astype(plan.value.dtype))
    elif blocks.mlp.gate is not None:
        blocks = blocks.with_layers({"fc1": _divided(blocks.mlp.fc1, factors)})
    else:
        before = jnp.ones_like(factors) if blocks.fc2_multiplier is None else blocks.fc2_multiplier
        blocks = blocks.replace(fc2_multiplier=before / factors)
    return with_blocks(encoder.replace(plan=plan), blocks)


def shift_inputs(encoder: Encoder, site: str, shift: Float[Array, "L C"]) -> Encoder:
    """Subtracts a number from every channel of a norm's output (`qkv`, `fc1`) and adds its product to the biases after it; an RMSNorm
    gets a bias for it."""
    blocks = encoder.params.image.blocks
    norm = getattr(blocks, NORMS[site])
    shifted = {}
    for name, layer in blocks.layers(site).items():
        product = jnp.sum(_scaled(layer, shift), axis=1)
        shifted[name] = layer.replace(bias=product if layer.bias is None else product + layer.bias)
    shift = shift.astype(norm.scale.dtype)
    lowered = norm.replace(bias=-shift if norm.bias is None else norm.bias - shift)
    return with_blocks(encoder, blocks.with_layers(shifted).replace(**{NORMS[site]: lowered}))


def _divided(layer: Dense, factors: Float[Array, "L ..."]) -> Dense:
    """A stacked layer of one input axis, its outputs divided."""
    bias = None if layer.bias is None else layer.bias / factors.astype(layer.bias.dtype)
    return layer.replace(kernel=layer.floats / factors[:, None].astype(layer.floats.dtype), bias=bias)


def _scaled(layer: Dense, factors: Float[Array, "L C"]) -> Float[Array, "L ..."]:
    """A stacked kernel with one factor an input channel."""
    kernel = layer.floats
    inputs = kernel.shape[1 : 1 + layer.num_inputs]
    shaped = factors.reshape(len(factors), *inputs, *(1,) * (kernel.ndim - 1 - layer.num_inputs))
    return kernel * shaped.astype(kernel.dtype)
