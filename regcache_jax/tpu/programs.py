"""The programs whose costs are compared, each as a function of (weights, images) and the shapes of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from regcache_jax.core.plan import Schedule, empty_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Block, Grid, ImageTower
from regcache_jax.core.spec import EncoderSpec, ImageSpec
from regcache_jax.encoders.forms import PLAIN, TILE, Form
from regcache_jax.encoders.parameters import parameter_shapes
from regcache_jax.encoders.serving import num_rows
from regcache_jax.encoders.serving_program import ServingWeights, prepare, serve
from regcache_jax.quantization.kernels import quantize_kernels
from regcache_jax.quantization.parts import head_stack, with_rounded_stack
from regcache_jax.tpu.peer import Peer

PROGRAMS = ("flax-bf16", "bf16", "int8", "int8+registers", "int8+registers+deletion")
INTEGER_TILE = 32
"""Rows of a TPU's registers that hold int8."""


def serving_shapes(spec: EncoderSpec, scheme: Scheme | None, registers: int = 0, form: Form = PLAIN) -> ServingWeights:
    """What a serving program takes: the image tower in bf16, integer kernels and float32 scales where quantised, one tree a
    block, and so many registers a block."""
    tower = parameter_shapes(spec, jnp.bfloat16).image
    num_blocks = spec.image.blocks.num_blocks

    def rounded(tower: ImageTower) -> ImageTower:
        if scheme is None:
            return tower
        own = scheme.of_part("head")
        if own is not None and tower.head is not None:
            head = with_rounded_stack(tower.head, _rounded_stack(head_stack(tower.head), own, 1))
            tower = tower.replace(head=head)
        return tower.replace(blocks=_rounded_stack(tower.blocks, scheme, num_blocks))

    blocks = spec.image.blocks
    plan = empty_plan(num_blocks, blocks.num_heads, blocks.head_dim, registers) if registers else None
    return jax.eval_shape(lambda tower, plan: prepare(rounded(tower), scheme, plan, form), tower, plan)


def _rounded_stack(blocks: Block, scheme: Scheme, num_blocks: int) -> Block:
    """Stacked blocks with integer kernels, and scales (whose values do not matter here) where they are calibrated."""
    calibrated = scheme.inputs if scheme.calibrated else ()
    grids = {site: Grid(jnp.ones(num_blocks)) for site in calibrated if site not in scheme.float_sites}
    return quantize_kernels(blocks, scheme).with_grids(grids)


def default_schedule(spec: ImageSpec, program: str) -> Schedule:
    """Registers from a quarter of the depth on; the deletion, where asked for, at that block, of as few tokens as leave whole
    tiles of integers (of floats, where tokens are few) with the register's row in the last."""
    blocks = spec.blocks.num_blocks
    if program not in PROGRAMS[3:]:
        return Schedule(0, 0, 0, 0)
    count = 0
    if program == PROGRAMS[4]:
        tile = INTEGER_TILE if spec.num_tokens >= 2 * INTEGER_TILE else TILE
        count = spec.num_tokens + 1 - (num_rows(spec.num_tokens, 1, tile) - tile)
    return Schedule(blocks // 4, blocks, blocks // 4, count)


def program(
    spec: EncoderSpec,
    name: str,
    scheme: Scheme | None,
    schedule: Schedule | None,
    form: Form = PLAIN,
    registers: int = 1,
) -> tuple[Callable[..., Any], PyTree]:
    """A function of (weights, images) for one of `PROGRAMS`, and the weights' shapes. `registers`: rows of a plan's, where it sees one."""
    image = spec.image
    if name == "flax-bf16":
        peer = Peer(image)
        example = jax.ShapeDtypeStruct((1, *image.picture_shape), jnp.bfloat16)
        return peer.apply, jax.eval_shape(peer.init, jax.random.key(0), example)
    scheme = None if name == "bf16" else scheme
    schedule = schedule if schedule is not None and name in PROGRAMS[3:] else default_schedule(image, name)
    if name == "int8+registers":
        schedule = dataclasses.replace(schedule, delete_count=0)
    shapes = serving_shapes(spec, scheme, registers if name in PROGRAMS[3:] else 0, form)
    return serving_features(image, schedule, scheme, form), shapes


def serving_features(
    spec: ImageSpec, schedule: Schedule, scheme: Scheme | None, form: Form = PLAIN
) -> Callable[[ServingWeights, Float[Array, "B Y X 3"]], Float[Array, "B E"]]:
    """Pooled features in the serving form."""
    return lambda weights, images: serve(weights, images, spec, schedule, scheme, form).features
