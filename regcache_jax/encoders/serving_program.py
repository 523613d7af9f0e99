"""The serving form as a program that runs for long: weights prepared once, blocks written out, tokens padded for a TPU.

Whatever follows from weights alone is worked out before the program runs: small vectors stand in float32, calibrated scales
are multiplied into those of the kernels, and each block's parameters and registers are arrays of their own. On a TPU every
such conversion is an operation of its own, and together they cost a twentieth of an int8 block (docs/performance.md).
The same numbers are multiplied as without it: float32 holds every bfloat16, and scales are multiplied in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.plan import BlockRegister, RegisterPlan, Schedule
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import NEGATIVE, Params
from regcache_jax.encoders.kernels import INPUT_AXES, copy_blocks, layers_of
from regcache_jax.encoders.serving import TILE
from regcache_jax.encoders.vision import ImageOutput, serve_image
from regcache_jax.ops.aqt import QuantizedTensor


class ServingWeights(NamedTuple):
    """An image tower's parameters, and what each block sees of a plan (None: nothing). `blocks` is a tuple of one tree a block, or
    as it was where rules leave kernels of some blocks in float, which stand packed."""

    image: Params
    registers: tuple[BlockRegister, ...] | None


def prepare(image: Params, scheme: Scheme | None, plan: RegisterPlan | None) -> ServingWeights:
    """The weights of `serve` from an image tower's parameters, as `Encoder.params["image"]` has them, and a plan."""
    dtype = image["position_embedding"].dtype
    image = {name: part if name == "patch_embedding" else _widened(part) for name, part in image.items()}
    blocks = image["blocks"] if scheme is None else _with_product_scales(image["blocks"], scheme)
    registers = None if plan is None else plan.rows()
    if registers is not None and not (scheme and scheme.products):  # beside integer products registers stay in float32
        registers = registers.replace(key=registers.key.astype(dtype), value=registers.value.astype(dtype))
    blocks = split_blocks(blocks) if scheme is None or not scheme.rules else blocks
    return ServingWeights({**image, "blocks": blocks}, None if registers is None else split_blocks(registers))


def serve(
    weights: ServingWeights,
    images: Float[Array, "B Y X 3"],
    spec: ImageSpec,
    schedule: Schedule,
    scheme: Scheme | None,
    *,
    unroll: bool = True,
) -> ImageOutput:
    """Runs the image tower on prepared weights, at the fixed block numbers of `schedule`."""
    blocks = weights.image["blocks"]
    params = {**weights.image, "blocks": join_blocks(blocks) if isinstance(blocks, tuple) else blocks}
    registers = None if weights.registers is None else join_blocks(weights.registers)
    return serve_image(params, images, spec, schedule, registers=registers, scheme=scheme, tile=TILE, unroll=unroll)


def split_blocks(blocks: Any) -> tuple[Any, ...]:
    """A stacked tree as one tree a block: what a serving program should be given, see `join_blocks`."""
    num_blocks = jax.tree.leaves(blocks)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, number=number: leaf[number], blocks) for number in range(num_blocks))


def join_blocks(blocks: tuple[Any, ...]) -> Any:
    """The inverse of `split_blocks`, inside a program that writes its blocks out: the compiler cancels joining against
    slicing, and places, prefetches and tiles each block's weights by themselves."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def _widened(part: Any) -> Any:
    """Biases, and the scales of norms, in float32, in which they are used."""

    def wide(path: Any, leaf: Array) -> Array:
        name = getattr(path[-1], "key", None) if path else None
        return leaf.astype(jnp.float32) if name in ("bias", "scale") else leaf

    return jax.tree_util.tree_map_with_path(wide, part)


def _with_product_scales(blocks: Params, scheme: Scheme) -> Params:
    """What the sums of an integer product are multiplied by, beside its kernel: where a site has one calibrated scale."""
    if not scheme.calibrated:
        return blocks
    blocks, scales = copy_blocks(blocks), blocks["input_scale"]
    for site in SITES:
        if site not in scales or scales[site].ndim > 1 or (site == "fc2" and NEGATIVE in scales):
            continue
        for group, name in layers_of(blocks, site):
            kernel = blocks[group][name]["kernel"]
            if isinstance(kernel, QuantizedTensor):
                columns = jnp.squeeze(kernel.scale, INPUT_AXES[name])
                scale = scales[site].reshape((-1,) + (1,) * (columns.ndim - 1))
                blocks[group][name] = {**blocks[group][name], "product_scale": scale * columns}
    return blocks
