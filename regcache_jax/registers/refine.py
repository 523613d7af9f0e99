"""Refine a plan by gradient (optional: RegCache itself trains nothing): keys, values and copies per head, without labels.

Adam on the label-free error through blocks whose integers are simulated in float, straight through the rounding. The gradient
does not see how a plan moves the static scales (rounding hides it), so scales are calibrated again after every pass, and
what counts is the error of the real integer encoder on images that no gradient has seen, each scored under the scales of a draw
that leaves it out, as in the search: the best plan there is returned, which is the one that came in if nothing was better.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import LabelFree, Objective, checked
from regcache_jax.core.options import check_fields, option, spelt_right
from regcache_jax.core.outputs import Outputs, label_free_errors
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.progress import Progress
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Grid, ImageTower
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders.blocks import run_blocks
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.outputs import pooled_outputs
from regcache_jax.encoders.rounding import Run
from regcache_jax.quantization.kernels import simulated_kernels
from regcache_jax.registers.reference import check_images, check_varied
from regcache_jax.registers.search.parts import Draws
from regcache_jax.registers.search.trial import Trials

DRAWS = 4
"""Draws of the calibration images, of which each scores the images that it leaves out."""


@spelt_right
@dataclasses.dataclass(frozen=True)
class RefineConfig:
    """How long, how fast, and for which error.

    Raises UserError for values out of bounds and unknown words."""

    passes: int = option("Passes over the training images.", 20, least=1)
    learning_rate: float = option("Size of a step, relative to the rows' own.", 0.02, above=0)
    patience: int = option("Passes without a gain on the held-back images that end it.", 4, least=1)
    held_back: float = option("Share of the images that no gradient sees.", 0.25, above=0, most=1)
    chunk: int = option("Images a step, at most.", 32, unit="pictures", least=1)
    # No gradient goes through a function: its plans are trained for both errors and chosen by it.
    objective: Objective = option("What an error is: a word of `core.objective` but accuracy, or a function.", "pooled")

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "objective", checked(self.objective))
        if self.objective == "accuracy":
            raise UserError("refining goes by an error without labels: pooled, patches, both, or a function")


@dataclasses.dataclass(frozen=True)
class RefineResult:
    """The best plan on the held-back images, its error there, that of the plan that came in, and the error after each pass."""

    plan: RegisterPlan
    error: float
    error_before: float
    history: tuple[float, ...]

    def sentence(self) -> str:
        """What refining has brought, in one line."""
        if self.error >= self.error_before:
            return f"refining brought nothing in {counted(len(self.history), 'pass')}; the plan is as it was searched"
        change = 1 - self.error / self.error_before
        return (
            f"refined in {counted(len(self.history), 'pass')}: error on held-back pictures {self.error_before:.3g} -> {self.error:.3g} "
            f"({change:.1%} less)"
        )

    def to_json(self) -> dict[str, Any]:
        """The figures, without the plan."""
        return {
            "error": self.error,
            "error_before": self.error_before,
            "history": list(self.history),
            "sentence": self.sentence(),
        }


class Offsets(NamedTuple):
    """What is trained: how far rows have moved, in units of their own size, and log tau for every block, head and register."""

    key: Float[Array, "L R H K"]
    value: Float[Array, "L R H K"]
    log_copies: Float[Array, "L H R"]


def moved(plan: RegisterPlan, offsets: Offsets) -> RegisterPlan:
    """The plan with its rows moved and its copies replaced."""

    def size(rows: Float[Array, "L R H K"]) -> Float[Array, ""]:
        return jnp.sqrt(jnp.mean(jnp.square(rows)))

    return plan.replace(
        key=plan.key + size(plan.key) * offsets.key,
        value=plan.value + size(plan.value) * offsets.value,
        copies=jnp.exp(offsets.log_copies),
    )


class Chunk(NamedTuple):
    """Pictures of one step: their states at the first block that a plan changes, their float outputs, and which are real."""

    hidden: Float[Array, "B N D"]
    reference: Outputs
    mask: Bool[Array, "B"]


class Way(NamedTuple):
    """What all steps share: the encoder's spec, how its blocks run, from which one on, and what an error is of."""

    spec: EncoderSpec
    run: Run
    first: int
    objective: LabelFree


@functools.partial(jax.jit, static_argnames="way")
def _step(
    learned: tuple[Offsets, Any],
    plan: RegisterPlan,
    tower: ImageTower,
    chunk: Chunk,
    learning_rate: Float[Array, ""],
    *,
    way: Way,
) -> tuple[Offsets, Any]:
    offsets, state = learned

    def loss(offsets: Offsets) -> Float[Array, ""]:
        output = run_blocks(tower.blocks, chunk.hidden, way.run, start=way.first, plan=moved(plan, offsets))
        reads_patches = chunk.reference.patches is not None
        read = pooled_outputs(tower, output.hidden, way.spec, reads_patches, output.present)
        errors = label_free_errors(way.objective, read, chunk.reference)
        return jnp.sum(jnp.where(chunk.mask, errors, 0.0)) / jnp.sum(chunk.mask, dtype=jnp.float32)

    gradient = jax.grad(loss)(offsets)
    with jax.numpy_dtype_promotion("standard"):  # optax divides by powers of an int32 count
        updates, state = optax.adam(learning_rate).update(gradient, state, offsets)
    return optax.apply_updates(offsets, updates), state


def refine(
    encoder: Encoder,
    images: Float[np.ndarray, "n Y X 3"],
    scheme: Scheme,
    plan: RegisterPlan,
    config: RefineConfig | None = None,
    *,
    progress: Progress | None = None,
) -> RefineResult:
    """Refines a plan's rows and copies; its block numbers and its deletion stay. Never worse than `plan` on the held-back
    images (the last ones). Raises UserError for a plan without registers, and as `search` does for images."""
    config = config or RefineConfig()
    images = np.asarray(images)
    check_images(images, encoder.spec)
    check_varied(images)
    if not plan.has_registers:
        raise UserError("this plan has no registers to refine")
    encoder.with_plan(plan)
    image = encoder.spec.image
    run = Run(image.blocks, scheme, image.protected)
    chunk = min(config.chunk, max(1, int(len(images) * config.held_back)))
    numbers = plan.schedule()
    first = min(numbers.start, numbers.delete_block) if numbers.delete_count else numbers.start
    draws = Draws(min(DRAWS, -(-len(images) // chunk)), chunk)
    trials = Trials(encoder.with_plan(None), images, scheme, (first,), draws, chunk, objective=config.objective)
    trained_for = cast(LabelFree, "both" if callable(config.objective) else config.objective)
    way = Way(encoder.spec, run, first, trained_for)
    num_held = max(1, round(trials.num_chunks * config.held_back))
    training = range(trials.num_chunks - num_held)
    held_from = len(training) * trials.chunk
    blocks = simulated_kernels(trials.encoder.params.image.blocks, scheme)  # where the states are
    copies = plan.copies.reshape(plan.copies.shape + (1,) * (3 - plan.copies.ndim))
    shape = (plan.num_blocks, plan.key.shape[2], plan.key.shape[1])
    offsets = Offsets(jnp.zeros_like(plan.key), jnp.zeros_like(plan.value), jnp.broadcast_to(jnp.log(copies), shape))
    state = optax.adam(config.learning_rate).init(offsets)
    current = moved(plan, offsets)
    before = float(trials.errors(current)[held_from:].mean())
    best, best_error, history = plan, before, []
    for number in range(config.passes):
        scales = trials.ranges(current).scales(scheme) if scheme.calibrated else {}
        grids = {site: Grid(scale) for site, scale in scales.items()}
        tower = trials.encoder.params.image.replace(blocks=blocks.with_grids(grids))
        for index in training:
            offsets, state = _step(
                (offsets, state), plan, tower, Chunk(*trials.quantized_chunk(index, first)), jnp.float32(config.learning_rate),
                way=way,
            )  # fmt: skip
        current = moved(plan, offsets)
        error = float(trials.errors(current)[held_from:].mean())
        history.append(error)
        if progress is not None:
            progress(number + 1, config.passes, f"held-back error {min(error, best_error):.3g}")
        if error < best_error:
            best, best_error = current, error
        elif len(history) - 1 - int(np.argmin(history)) >= config.patience:
            break
    return RefineResult(best, best_error, before, tuple(history))
