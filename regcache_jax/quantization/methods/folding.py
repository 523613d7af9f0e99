"""Changes of units that leave the float encoder's function alone: a site's input divided, what reads it multiplied."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.kernels import INPUT_AXES, Blocks, copy_blocks, layers_of
from regcache_jax.ops.aqt import largest_integer

NORMS = {"qkv": "norm1", "fc1": "norm2"}
"""The norm whose output is a site's input."""


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


def with_blocks(encoder: Encoder, blocks: Blocks) -> Encoder:
    """The same encoder with other blocks."""
    return encoder.replace(params={**encoder.params, "image": {**encoder.params["image"], "blocks": blocks}})


def divide_inputs(encoder: Encoder, site: str, factors: Float[Array, "L C"]) -> Encoder:
    """Divides every channel of a site's input by a factor and multiplies the kernels that read it.

    The division goes where it costs nothing: into the norm before `qkv` and `fc1`; into the value projection (and the plan's
    value rows) before `out`, as attention mixes channels alike; into the ungated half of a gated MLP before `fc2`. After
    an activation function it stays a product with a constant vector, `fc2_multiplier`, which a compiler fuses."""
    blocks = copy_blocks(encoder.params["image"]["blocks"])
    for group, name in layers_of(blocks, site):
        layer = blocks[group][name]
        layer["kernel"] = _scaled(layer["kernel"], factors, len(INPUT_AXES[name]))
    plan = encoder.plan
    if site in NORMS:
        norm = blocks[NORMS[site]]
        norm |= {name: norm[name] / factors.astype(norm[name].dtype) for name in ("scale", "bias")}
    elif site == "out":
        num_heads = encoder.spec.image.blocks.num_heads
        by_head = factors.reshape(len(factors), num_heads, -1)
        value = blocks["attention"]["value"]
        value["kernel"] = value["kernel"] / by_head[:, None].astype(value["kernel"].dtype)
        if "bias" in value:
            value["bias"] = value["bias"] / by_head.astype(value["bias"].dtype)
        if plan is not None:
            plan = plan.replace(value=plan.value / by_head[:, None].astype(plan.value.dtype))
    elif encoder.spec.image.blocks.gated_mlp:
        fc1 = blocks["mlp"]["fc1"]
        fc1["kernel"] = fc1["kernel"] / factors[:, None].astype(fc1["kernel"].dtype)
        if "bias" in fc1:
            fc1["bias"] = fc1["bias"] / factors.astype(fc1["bias"].dtype)
    else:
        before = blocks.get("fc2_multiplier", jnp.ones_like(factors))
        blocks["fc2_multiplier"] = before / factors
    return with_blocks(encoder.replace(plan=plan), blocks)


def shift_inputs(encoder: Encoder, site: str, shift: Float[Array, "L C"]) -> Encoder:
    """Subtracts a number from every channel of a norm's output (`qkv`, `fc1`) and adds its product to the biases after it."""
    blocks = copy_blocks(encoder.params["image"]["blocks"])
    norm = blocks[NORMS[site]]
    norm["bias"] = norm["bias"] - shift.astype(norm["bias"].dtype)
    for group, name in layers_of(blocks, site):
        layer = blocks[group][name]
        product = jnp.sum(_scaled(layer["kernel"], shift, 1), axis=1)
        layer["bias"] = product + layer["bias"] if "bias" in layer else product
    return with_blocks(encoder, blocks)


def _scaled(kernel: Array, factors: Float[Array, "L C"], num_inputs: int) -> Array:
    """Applies one factor an input channel to a stacked kernel."""
    inputs = kernel.shape[1 : 1 + num_inputs]
    shaped = factors.reshape(len(factors), *inputs, *(1,) * (kernel.ndim - 1 - num_inputs))
    return kernel * shaped.astype(kernel.dtype)
