"""The serving form as a program that runs for long: weights prepared once, blocks written out, tokens padded for a TPU.

Whatever follows from weights alone is worked out before the program runs: small vectors stand in float32, calibrated scales
are multiplied into those of the kernels, and each block's parameters and registers are arrays of their own. On a TPU every
such conversion is an operation of its own, and together they cost a twentieth of an int8 block (docs/performance_tried.md).
The same numbers are multiplied as without it: float32 holds every bfloat16, and scales are multiplied in the same order.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Num

from regcache_jax.core.plan import BlockRegister, RegisterPlan, Schedule
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Dense, Grid, ImageTower, Norm, QuantizedTensor
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.forms import PLAIN, Form
from regcache_jax.encoders.pooling import fold_probe
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.vision import ImageOutput, grid_of, serve_formed
from regcache_jax.ops.rounders import reciprocal


class ServingWeights(NamedTuple):
    """An image tower's parameters but for its blocks, which are one tree a block (or stacked, where rules leave kernels of some blocks
    in float, which stand packed), and what each block sees of a plan (None: nothing)."""

    around: ImageTower
    blocks: Block | tuple[Block, ...]
    registers: tuple[BlockRegister, ...] | None


def prepare(image: ImageTower, scheme: Scheme | None, plan: RegisterPlan | None, form: Form = PLAIN) -> ServingWeights:
    """The weights of `serve` from an image tower's parameters and a plan, for the same form."""
    dtype = image.patch_embedding.floats.dtype
    image = _widened(image).replace(patch_embedding=image.patch_embedding)
    blocks = image.blocks if scheme is None else _with_site_scales(image.blocks, scheme)
    registers = None if plan is None else plan.rows()
    if registers is not None and not (scheme and scheme.products):  # beside integer products registers stay in float32
        kept = jnp.float32 if form.keeps_wide else dtype
        rows = {name: getattr(registers, name).astype(dtype).astype(kept) for name in ("key", "value")}
        registers = registers.replace(**rows)
    if form.attention == "pairs":
        blocks = _in_pairs(blocks)
        registers = registers and registers.replace(key=_pairs(registers.key, 2), value=_pairs(registers.value, 2))
    if form.outputs_first:
        blocks = _with_kernels(blocks, lambda values, layer: jnp.moveaxis(values, layer.input_axes, _last(layer)))
    if form.folded_probe and image.head is not None:
        image = image.replace(head=fold_probe(image.head))
    return ServingWeights(
        image.replace(blocks=None),
        split_blocks(blocks) if scheme is None or not scheme.rules else blocks,
        None if registers is None else split_blocks(registers),
    )


def serve(
    weights: ServingWeights,
    images: Float[Array, "B Y X 3"],
    spec: ImageSpec,
    schedule: Schedule,
    scheme: Scheme | None,
    form: Form = PLAIN,
    *,
    unroll: bool = True,
) -> ImageOutput:
    """Runs the image tower on weights prepared for `form`, at the fixed block numbers of `schedule`. Where the form has its last block run
    for the class token alone, there are no other tokens in what is returned."""
    blocks = weights.blocks
    if form.outputs_first and isinstance(blocks, tuple):  # the compiler folds this turn into the product
        blocks = tuple(
            _with_kernels(block, lambda values, layer: jnp.moveaxis(values, _last(layer), range(layer.num_inputs)))
            for block in blocks
        )
    tower = weights.around.replace(blocks=join_blocks(blocks) if isinstance(blocks, tuple) else blocks)
    registers = None if weights.registers is None else join_blocks(weights.registers)
    run = Run(spec.blocks, scheme, spec.protected, grid_of(images, spec), form)
    return serve_formed(tower, images, spec, schedule, registers, run, form.tile, unroll)


Stacked = TypeVar("Stacked", Block, BlockRegister)


def split_blocks(blocks: Stacked) -> tuple[Stacked, ...]:
    """A stacked tree as one tree a block: what a serving program should be given, see `join_blocks`."""
    num_blocks = jax.tree.leaves(blocks)[0].shape[0]
    return tuple(jax.tree.map(operator.itemgetter(number), blocks) for number in range(num_blocks))


def join_blocks(blocks: tuple[Stacked, ...]) -> Stacked:
    """The inverse of `split_blocks`, inside a program that writes its blocks out: the compiler cancels joining against
    slicing, and places, prefetches and tiles each block's weights by themselves."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def _last(layer: Dense) -> range:
    """The last axes of a kernel, as many as a layer has inputs."""
    return range(-layer.num_inputs, 0)


def _with_kernels(blocks: Block, change: Callable[[Int8[Array, "..."], Dense], Int8[Array, "..."]]) -> Block:
    """Blocks whose integer kernels hold their integers otherwise."""
    layers = {name: layer for site in SITES for name, layer in blocks.layers(site).items()}
    kernels = {name: layer.kernel for name, layer in layers.items()}
    return blocks.with_layers(
        {
            name: layers[name].replace(kernel=kernel.replace(values=change(kernel.values, layers[name])))
            for name, kernel in kernels.items()
            if isinstance(kernel, QuantizedTensor)
        }
    )


def _pairs(leaf: Num[Array, "..."], axis: int) -> Num[Array, "..."]:
    """Heads and their channels, at `axis` and behind it, as pairs of heads with twice the channels; what all share stays."""
    before, (heads, channels), after = leaf.shape[:axis], leaf.shape[axis : axis + 2], leaf.shape[axis + 2 :]
    return leaf if heads == channels == 1 else leaf.reshape(*before, heads // 2, 2 * channels, *after)


def _in_pairs(blocks: Block) -> Block:
    """The stacked layers of attention, and what is added in front of its output, for pairs of heads."""

    def paired(layer: Dense) -> Dense:
        axis, kernel = 3 - layer.num_inputs, layer.kernel
        kernel = jax.tree.map(lambda leaf: _pairs(leaf, axis), kernel)
        if layer.num_inputs == 2:
            return layer.replace(kernel=kernel)
        vectors = {"bias": layer.bias, "product_scale": layer.product_scale}
        return layer.replace(
            kernel=kernel, **{name: each if each is None else _pairs(each, 1) for name, each in vectors.items()}
        )

    attention = blocks.attention
    blocks = blocks.replace(
        attention=attention.replace(
            query=paired(attention.query),
            key=paired(attention.key),
            value=paired(attention.value),
            out=paired(attention.out),
        )
    )
    grid = blocks.grids.out
    if grid is None or grid.offset is None or grid.offset.ndim < 3:
        return blocks
    return blocks.with_grids({"out": grid.replace(offset=_pairs(grid.offset, 1))})


def _widened(tower: ImageTower) -> ImageTower:
    """Biases, and the scales of norms, in float32, in which they are used."""

    def wide(part: Any) -> Any:
        if isinstance(part, Norm):
            return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), part)
        if isinstance(part, Dense) and part.bias is not None:
            return part.replace(bias=part.bias.astype(jnp.float32))
        return part

    return jax.tree.map(wide, tower, is_leaf=lambda part: isinstance(part, Norm | Dense))


def _with_site_scales(blocks: Block, scheme: Scheme) -> Block:
    """What the sums of an integer product are multiplied by, beside its kernel, and what its input is: where a site has one calibrated
    scale. On a GPU every reciprocal would be a kernel of its own."""
    scaled: dict[str, Dense] = {}
    grids: dict[str, Grid] = {}
    for site in SITES if scheme.calibrated else ():
        grid = blocks.grids.of(site)
        if grid.scale is None or grid.scale.ndim > 1 or grid.negative is not None:
            continue
        grids[site] = grid.replace(inverse=reciprocal(grid.scale))
        for name, layer in blocks.layers(site).items():
            if isinstance(layer.kernel, QuantizedTensor):
                columns = jnp.squeeze(layer.kernel.scale, layer.input_axes)
                scale = grid.scale.reshape((-1,) + (1,) * (columns.ndim - 1))
                scaled[name] = layer.replace(product_scale=scale * columns)
    return blocks.with_layers(scaled).with_grids(grids)
