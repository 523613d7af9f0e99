"""The programs that trials run: parts of the image tower, from the block where a plan begins. Patch tokens come out where they are read."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from regcache_jax.core.outputs import Outputs
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Grid, ImageTower
from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec
from regcache_jax.encoders.blocks import run_blocks
from regcache_jax.encoders.outputs import outputs_of, pooled_outputs
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.vision import image_features
from regcache_jax.quantization.calibrate import Ranges
from regcache_jax.registers.candidates import COLLECT, Running, Seen, merge
from regcache_jax.registers.search.ranges import collectors

Images = Float[Array, "B Y X 3"]
States = Float[Array, "B N D"]
Real = Bool[Array, "B"]
Number = Int[Array, ""]
Others = Bool[Array, "A A"]


def block_flops(spec: BlockSpec, num_tokens: int) -> int:
    """Floating point (or integer) operations of one block on one image: two for each multiplication that is added."""
    mlp = (3 if spec.gated_mlp else 2) * spec.width * spec.mlp_width
    return 2 * num_tokens * (4 * spec.width**2 + mlp + 2 * num_tokens * spec.width)


@functools.partial(jax.jit, static_argnames=("spec", "scheme", "entries", "patches"))
def float_states(
    tower: ImageTower,
    images: Images,
    real: Real,
    *,
    spec: EncoderSpec,
    scheme: Scheme,
    entries: tuple[int, ...],
    patches: bool,
    running: Running | None = None,
) -> tuple[Outputs, dict[int, States], PyTree, Running | None]:
    """Outputs, the states that enter the blocks `entries`, what scales come from, and the running list of candidates (if there is one)."""
    collect = {
        **collectors(scheme, spec.image.protected, real),
        **(COLLECT if running else {"hidden": COLLECT["hidden"]}),
    }
    output = image_features(tower, images, spec.image, collect=collect)
    seen = {name: output.collected.pop(name) for name in COLLECT if name in collect}
    if running is not None:
        running = merge(Seen(**seen), real, running, spec.image)
    kept = {block: seen["hidden"][block] for block in entries}
    return outputs_of(output, spec, patches), kept, output.collected, running


@functools.partial(jax.jit, static_argnames=("spec", "scheme", "entries", "patches"))
def quantized_states(
    tower: ImageTower, images: Images, *, spec: EncoderSpec, scheme: Scheme, entries: tuple[int, ...], patches: bool
) -> tuple[Outputs, dict[int, States]]:
    """Outputs, and the states that enter the blocks `entries`."""
    output = image_features(tower, images, spec.image, scheme=scheme, collect={"hidden": COLLECT["hidden"]})
    hidden = output.collected["hidden"]
    return outputs_of(output, spec, patches), {block: hidden[block] for block in entries}


@functools.partial(jax.jit, static_argnames=("spec", "scheme"))
def trial_ranges(
    tower: ImageTower, hidden: States, plan: RegisterPlan, first: Number, real: Real, *, spec: ImageSpec, scheme: Scheme
) -> PyTree:
    """What scales come from, with a plan in place, from the float states at block `first`."""
    return run_blocks(
        tower.blocks, hidden, Run(spec.blocks, None, spec.protected),
        start=first, plan=plan, collect=collectors(scheme, spec.protected, real),
    ).collected  # fmt: skip


@functools.partial(jax.jit, static_argnames=("spec", "scheme", "patches"))
def trial_outputs(
    tower: ImageTower,
    scales: Ranges,
    hidden: tuple[States, ...],
    plan: RegisterPlan,
    first: Number,
    *,
    spec: EncoderSpec,
    scheme: Scheme,
    patches: bool,
    others: Others | None = None,
) -> Outputs:
    """Outputs of the integer blocks with a plan in place, from the quantised states of some chunks at block `first`: under given static
    scales, or under those that `others` among the images give each of them."""
    image = spec.image
    blocks = tower.blocks.with_grids({site: Grid(scale) for site, scale in scales.items()})
    run = Run(image.blocks, scheme, image.protected, others=others)
    output = run_blocks(blocks, jnp.concatenate(hidden), run, start=first, plan=plan)
    return pooled_outputs(tower, output.hidden, spec, patches, output.present)


@functools.partial(jax.jit, static_argnames=("spec", "scheme", "patches"))
def whole_outputs(
    tower: ImageTower,
    scales: Ranges,
    images: Images,
    plan: RegisterPlan,
    *,
    spec: EncoderSpec,
    scheme: Scheme | None,
    patches: bool,
) -> Outputs:
    """Outputs of the whole tower with a plan in place, quantised or in float."""
    grids = {site: Grid(scale) for site, scale in scales.items()}
    tower = tower.replace(blocks=tower.blocks.with_grids(grids))
    return outputs_of(image_features(tower, images, spec.image, plan=plan, scheme=scheme), spec, patches)


PROGRAMS: tuple[Any, ...] = (float_states, quantized_states, trial_ranges, trial_outputs, whole_outputs)


def compilations() -> int:
    """How many programs the trials have compiled in this process."""
    return sum(program._cache_size() for program in PROGRAMS)
