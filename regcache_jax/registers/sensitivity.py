"""Sensitivity (paper, step 1): quantise one site of one block at a time and measure the error of the outputs.

Every measurement starts from the float states at its own block, and one program serves all of them. A plan in place stays in place.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import Objective, checked, reads_patches
from regcache_jax.core.outputs import Answers, Outputs, image_errors
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.progress import Progress
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Grid, ImageTower
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.data.cut import cut
from regcache_jax.encoders.blocks import run_blocks
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.outputs import outputs_of, pooled_outputs
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.vision import image_features
from regcache_jax.quantization.calibrate import calibrate, scales_from_ranges
from regcache_jax.quantization.kernels import quantize_kernels
from regcache_jax.registers.reference import check_images


@functools.partial(jax.jit, static_argnames=("spec", "patches"))
def _reference(
    tower: ImageTower, images: Float[Array, "B Y X 3"], plan: RegisterPlan | None, *, spec: EncoderSpec, patches: bool
) -> tuple[Outputs, Float[Array, "L B N D"], Bool[Array, "L B N"] | None]:
    """Float outputs, the states that enter the blocks, and which of their tokens a plan has left."""
    collect = {"hidden": lambda trace: trace.hidden, "present": lambda trace: trace.present}
    output = image_features(tower, images, spec.image, plan=plan, collect=collect)
    return outputs_of(output, spec, patches), output.collected["hidden"], output.collected["present"]


class _State(NamedTuple):
    """What enters a block, and which of its tokens a plan has left."""

    block: Int[Array, ""]
    hidden: Float[Array, "B N D"]
    present: Bool[Array, "B N"] | None


@functools.partial(jax.jit, static_argnames=("spec", "scheme", "patches"))
def _one_site(
    tower: ImageTower,
    rounded: Block,
    grids: dict[str, Grid],
    state: _State,
    plan: RegisterPlan | None,
    *,
    spec: EncoderSpec,
    scheme: Scheme,
    patches: bool,
) -> Outputs:
    """Outputs with the sites quantised whose grid is enabled, from the float state at a block. What the plan deletes there is gone
    from `present` already, and nothing is deleted again."""
    blocks = tower.blocks
    mixed = {}
    for site in SITES:
        integer = rounded.layers(site)
        for name, layer in blocks.layers(site).items():
            on = jnp.reshape(jnp.asarray(grids[site].enabled), (-1, *(1,) * (layer.floats.ndim - 1)))
            mixed[name] = layer.replace(kernel=jnp.where(on, integer[name].integers.dequantize(), layer.floats))
    blocks = blocks.with_layers(mixed).with_grids(grids)
    run = Run(spec.image.blocks, scheme, spec.image.protected)
    if plan is not None:
        plan = plan.replace(delete_count=jnp.where(plan.delete_block > state.block, plan.delete_count, 0))
    output = run_blocks(blocks, state.hidden, run, start=state.block, plan=plan, present=state.present)
    return pooled_outputs(tower, output.hidden, spec, patches, output.present)


def sensitivity(
    encoder: Encoder,
    images: Float[np.ndarray, "n Y X 3"],
    scheme: Scheme,
    *,
    objective: Objective = "pooled",
    labels: Int[np.ndarray, "n"] | None = None,
    class_vectors: Float[np.ndarray, "C E"] | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Float[np.ndarray, "L 4"]:
    """Mean error by the objective when only one site (columns: `SITES`) of one block (rows) is quantised: its weights and
    its static activation scale, calibrated on the same images. With labels and class vectors: the drop in top-1. An encoder with a plan
    is held against itself in float, the plan in place.

    `progress` is called after each run of the blocks with their number and how many there will be."""
    answers = None if labels is None or class_vectors is None else Answers(labels, class_vectors)
    objective = checked(objective) if answers is None else "accuracy"
    if objective == "accuracy" and answers is None:
        raise UserError("objective 'accuracy' needs labels and class vectors")
    images = np.asarray(images)
    check_images(images, encoder.spec)
    scheme = scheme.plain
    spec, tower, plan = encoder.spec, encoder.params.image, encoder.plan
    ranges = calibrate(encoder, (batch for batch, _ in cut(images, batch_size)), scheme)
    scales = scales_from_ranges(ranges, scheme.activation_bits)
    rounded = quantize_kernels(tower.blocks, scheme)
    num_blocks = spec.image.blocks.num_blocks
    errors, baseline = np.zeros((num_blocks, len(SITES))), 0.0
    num_batches = -(-len(images) // batch_size)
    total = num_batches * num_blocks * len(SITES)
    if progress is not None:
        progress(0, total)
    for number, (batch, mask) in enumerate(cut(images, batch_size)):
        read = reads_patches(objective)
        reference, hidden, present = _reference(tower, jnp.asarray(batch, encoder.dtype), plan, spec=spec, patches=read)
        real = slice(int(mask.sum()))
        known = reference.on_host().of(real)
        first = number * len(mask)
        own = None if answers is None else answers.of(slice(first, first + real.stop))
        if own is not None:
            baseline += image_errors("accuracy", known, known, own).sum()
        for block in range(num_blocks):
            state = _State(jnp.int32(block), hidden[block], None if present is None else present[block])
            for column, chosen in enumerate(SITES):
                only = {site: np.arange(num_blocks) == (block if site == chosen else -1) for site in SITES}
                grids = {site: Grid(scales[site], enabled=jnp.asarray(only[site])) for site in SITES}
                outputs = _one_site(tower, rounded, grids, state, plan, spec=spec, scheme=scheme, patches=read)
                errors[block, column] += image_errors(objective, outputs.on_host().of(real), known, own).sum()
                if progress is not None:
                    progress((number * num_blocks + block) * len(SITES) + column + 1, total)
    return (errors - baseline) / len(images)


def most_sensitive(errors: Float[np.ndarray, "L 4"], count: int) -> list[tuple[str, int]]:
    """The (site, block) cells with the largest errors of `sensitivity`, the largest first."""
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    return [(SITES[cell % len(SITES)], int(cell) // len(SITES)) for cell in order]
