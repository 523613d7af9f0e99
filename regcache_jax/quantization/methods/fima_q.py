"""FIMA-Q (Wu et al. 2025, arXiv 2506.11543): a block's roundings and scales learned under its Fisher information.

Block after block, whether each weight is rounded up or down (AdaRound, arXiv 2004.10568) and the activations' scales are
learned so that the block's output comes near the float one. What an error there costs is the Fisher information as a diagonal
plus a matrix of low rank (the paper's DPLR-FIM; formulas as in the authors' code, the full text was not at hand), from the
gradients of the final loss at the block's output and its error there, taken anew `RANK` times while learning. Inputs are
mixed from the quantised and the float encoder's (QDrop).

What differs: the final loss is half the squared distance of features from the float ones, where the paper has the divergence
of class probabilities (for both, gradient = Fisher information x error); the inverse of the errors' products is a
pseudo-inverse, as errors hardly change between two refreshes; scales are learned as logarithms; activations inside the block
are never left unrounded by chance; and there are `STEPS` steps a block, not 20,000.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, ImageTower, QuantizedTensor
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import run_blocks, segment
from regcache_jax.encoders.encoder import Encoder, normalize
from regcache_jax.encoders.pooling import pool
from regcache_jax.encoders.rounding import Run
from regcache_jax.quantization.methods.adaround import Learned, settled, simulated, start_of_rounding, up
from regcache_jax.quantization.methods.by_block import State, all_entering, blocks_of, plan_of_block
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed

STEPS = 200
IMAGES = 16
"""A step."""
RANK = 5
LEARNING_RATE = 1e-2
ROUNDING_WEIGHT = 0.01
SHARPNESS = (20.0, 2.0)
"""Exponent of the term that drives roundings to 0 or 1, from its beginning (after a fifth of the steps) to its end."""
CHUNK = 64
"""Images at a time where nothing is learned."""
SEED = 0
_ADAM = optax.adam(LEARNING_RATE)


class Fisher(NamedTuple):
    """Mean magnitudes over images of gradients and errors at a block's output, a row a refresh (zero: not yet taken)."""

    gradients: Float[Array, "R E"]
    errors: Float[Array, "R E"]


def dplr_loss(error: Float[Array, "B E"], fisher: Fisher) -> Float[Array, "2"]:
    """The cost of an error at a block's output: by the part of low rank, and by the diagonal."""
    taken = jnp.maximum(jnp.sum(jnp.any(fisher.gradients > 0, axis=1).astype(jnp.float32)), 1.0)
    inverse = jnp.linalg.pinv(fisher.errors @ fisher.errors.T, rtol=1e-4, hermitian=True)
    along = jnp.abs(error) @ fisher.gradients.T
    low_rank = jnp.mean(jnp.einsum("bi,ij,bj->b", along, inverse, along))
    diagonal = jnp.mean(jnp.square(error) * jnp.sum(fisher.gradients, axis=0) / taken)
    return jnp.stack([low_rank, diagonal])


class Task(NamedTuple):
    """Learning one block: its float parameters and its quantised ones, its plan, and the states before and behind it."""

    float_block: Block
    fixed: Block
    plan: Any
    rounded: State
    exact: State
    target: State


@functools.partial(jax.jit, static_argnames="run")
def run_block(block: Block, state: State, plan: RegisterPlan | None, *, run: Run) -> State:
    """One block."""
    output = run_blocks(block, state[0], run, plan=plan, present=state[1])
    return output.hidden, output.present


class Whole(NamedTuple):
    """The float encoder around the block that is learned: its image tower and plan, and the block after."""

    tower: ImageTower
    plan: RegisterPlan | None
    after: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("spec", "unit", "run"))
def _fisher(
    whole: Whole, learned: Learned, task: Task, rows: Int[Array, "B"], *, spec: ImageSpec, unit: bool, run: Run
) -> Float[Array, "2 E"]:
    """Sums over some images of the magnitudes of the final loss's gradient at the block's output and of its error there."""
    exact, target = (_take(state, rows) for state in (task.exact, task.target))

    def features(hidden: Float[Array, "B N D"]) -> Float[Array, "B E"]:
        rest = Run(spec.blocks, None, spec.protected)
        output = run_blocks(whole.tower.blocks, hidden, rest, start=whole.after, plan=whole.plan, present=target[1])
        found = pool(whole.tower, output.hidden, spec, output.present)[0].astype(jnp.float32)
        return normalize(found) if unit else found

    wanted = features(target[0])
    block = simulated(learned, task.float_block, task.fixed, _scheme(run))
    hidden, _ = run_block(block, exact, task.plan, run=run)
    gradient = jax.grad(lambda hidden: 0.5 * jnp.sum(jnp.square(features(hidden) - wanted)))(hidden)
    flat = jnp.stack([gradient, hidden - target[0]]).astype(jnp.float32).reshape(2, len(hidden), -1)
    return jnp.sum(jnp.abs(flat), axis=1)


@functools.partial(jax.jit, static_argnames="run")
def _steps(
    learned: Learned,
    moments: Any,
    fisher: Fisher,
    task: Task,
    numbers: Int[Array, "T"],
    rows: Int[Array, "T B"],
    *,
    run: Run,
) -> tuple[Learned, Any]:
    """Some steps of Adam under one estimate of the Fisher information."""

    def costs(learned: Learned, number: Int[Array, ""], rows: Int[Array, "B"]) -> Float[Array, "2"]:
        rounded, exact, target = (_take(state, rows) for state in (task.rounded, task.exact, task.target))
        dropped = jax.random.bernoulli(jax.random.fold_in(jax.random.key(SEED), number), 0.5, exact[0].shape)
        state = jnp.where(dropped, exact[0], rounded[0]), exact[1]
        block = simulated(learned, task.float_block, task.fixed, _scheme(run))
        hidden, _ = run_block(block, state, task.plan, run=run)
        return dplr_loss((hidden - target[0]).astype(jnp.float32).reshape(len(hidden), -1), fisher)

    first = jnp.maximum(costs(learned, numbers[0], rows[0]), 1e-30)

    def loss(learned: Learned, number: Int[Array, ""], rows: Int[Array, "B"]) -> Float[Array, ""]:
        done = jnp.maximum((number.astype(jnp.float32) / STEPS - 0.2) / 0.8, 0.0)
        exponent = SHARPNESS[0] + (SHARPNESS[1] - SHARPNESS[0]) * done
        between = [1.0 - jnp.abs(2.0 * up(leaf) - 1.0) ** exponent for leaf in learned.rounding.values()]
        undecided = ROUNDING_WEIGHT * sum((jnp.sum(each) for each in between), jnp.zeros(()))
        return jnp.sum(costs(learned, number, rows) / first) + jnp.where(done > 0, undecided, 0.0)

    def step(carry: tuple[Learned, Any], batch: Any) -> tuple[tuple[Learned, Any], None]:
        learned, moments = carry
        slopes = jax.grad(loss)(learned, *batch)
        with jax.numpy_dtype_promotion("standard"):  # Adam counts its steps in integers
            updates, moments = _ADAM.update(slopes, moments)
        return (optax.apply_updates(learned, updates), moments), None

    return jax.lax.scan(step, (learned, moments), (numbers, rows))[0]


def learn(learned: Learned, task: Task, fisher_of: Any, rng: np.random.Generator, run: Run) -> Learned:
    """Learns one block. `fisher_of` gives the two rows of a refresh."""
    moments = _ADAM.init(learned)
    size = len(task.exact[0])
    zeros = jnp.zeros((RANK, int(np.prod(task.target[0].shape[1:]))), jnp.float32)
    fisher = Fisher(zeros, zeros)
    for refresh, numbers in enumerate(np.array_split(np.arange(STEPS, dtype=np.int32), RANK)):
        gradients, errors = fisher_of(learned)
        fisher = Fisher(fisher.gradients.at[refresh].set(gradients), fisher.errors.at[refresh].set(errors))
        rows = np.stack([rng.choice(size, min(IMAGES, size), replace=False) for _ in numbers])
        learned, moments = _steps(learned, moments, fisher, task, jnp.asarray(numbers), jnp.asarray(rows), run=run)
    return learned


def fima_q(encoder: Encoder, quantized: Encoder, seen: Observed) -> Encoder:
    """Learns roundings and scales of all quantised blocks, the earlier ones in place. Raises UserError for zero points."""
    image, scheme = encoder.spec.image, quantized.scheme
    assert scheme is not None
    original, blocks = encoder.params.image.blocks, quantized.params.image.blocks
    if scheme.activations == "float" or any(blocks.grids.of(site).offset is not None for site in SITES):
        raise UserError("method fima_q goes with activations that are quantised without zero points or noise")
    alone = dataclasses.replace(image.blocks, num_blocks=1)
    exact = _joined(all_entering(encoder, seen.images))
    rounded, rng = exact, np.random.default_rng(SEED)
    for number in blocks_of(encoder, seen.images, "fima_q"):
        run = Run(alone, scheme.segments(number, number + 1)[0][2], image.protected)
        plan = plan_of_block(encoder.plan, number)
        float_block = jax.tree.map(lambda leaf, n=number: leaf[n : n + 1], original)
        target = _by_batch(float_block, exact, plan, Run(alone, None, image.protected))
        task = Task(float_block, segment(blocks, number, number + 1, scheme), plan, rounded, exact, target)
        start = _start(task, _scheme(run))
        if start.rounding:
            whole = Whole(encoder.params.image, encoder.plan, jnp.int32(number + 1))
            take = functools.partial(_fisher, whole, task=task, spec=image, unit=encoder.spec.normalize, run=run)
            learned = learn(start, task, functools.partial(_over_chunks, take, len(exact[0])), rng, run)
            blocks = settled(blocks, learned, task.float_block, _scheme(run), number)
        rounded = _by_batch(segment(blocks, number, number + 1, scheme), rounded, plan, run)
        exact = target
    return with_blocks(quantized, blocks)


def _scheme(run: Run) -> Scheme:
    assert run.scheme is not None
    return run.scheme


def _over_chunks(take: Callable[..., Float[Array, "2 E"]], size: int, learned: Learned) -> Float[Array, "2 E"]:
    """The mean over all images of what `take` sums up, `CHUNK` images at a time."""
    sums = [take(learned=learned, rows=jnp.arange(first, min(first + CHUNK, size))) for first in range(0, size, CHUNK)]
    return functools.reduce(jnp.add, sums) / size


def _start(task: Task, scheme: Scheme) -> Learned:
    """Roundings at the weights' own fractions, scales as they are; nothing for layers and sites in float."""
    rounding = {}
    for site in SITES:
        floats = task.float_block.layers(site)
        for name, layer in task.fixed.layers(site).items():
            if isinstance(layer.kernel, QuantizedTensor):
                exact = floats[name].floats.astype(jnp.float32)
                rounding[name] = start_of_rounding(exact / layer.integers.scale)
    scales = {site: task.fixed.grids.of(site).scale for site in SITES if scheme.at(site).quantized}
    return Learned(rounding, {site: jnp.zeros_like(scale) for site, scale in scales.items() if scale is not None})


def _take(state: Any, rows: Array) -> Any:
    """Some images of a state."""
    return state[0][rows], None if state[1] is None else state[1][rows]


def _joined(states: list[State]) -> State:
    hidden, present = zip(*states, strict=True)
    return jnp.concatenate(hidden), None if present[0] is None else jnp.concatenate(present)


def _by_batch(block: Block, state: State, plan: RegisterPlan | None, run: Run) -> State:
    """One block over the whole calibration set, `CHUNK` images at a time."""
    size = len(state[0])
    parts = [jnp.arange(first, min(first + CHUNK, size)) for first in range(0, size, CHUNK)]
    return _joined([run_block(block, _take(state, rows), plan, run=run) for rows in parts])


METHOD = Method(
    "fima_q",
    "roundings and scales learned block by block under the Fisher information",
    ("images",),
    finish=fima_q,
    rounds_again=True,
    passes=1,
)
