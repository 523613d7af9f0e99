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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.spec import BlockSpec, ImageSpec
from regcache_jax.encoders.blocks import run_blocks, segment_params
from regcache_jax.encoders.encoder import Encoder, normalize
from regcache_jax.encoders.kernels import Blocks, copy_blocks, layers_of
from regcache_jax.encoders.vision import pool
from regcache_jax.ops.aqt import QuantizedTensor, largest_integer
from regcache_jax.quantization.methods.by_block import State, entering, plan_of_block
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.methods.method import Batches, Method

STEPS = 200
IMAGES = 16
"""A step."""
RANK = 5
LEARNING_RATE = 1e-2
ROUNDING_WEIGHT = 0.01
SHARPNESS = (20.0, 2.0)
"""Exponent of the term that drives roundings to 0 or 1, from its beginning (after a fifth of the steps) to its end."""
STRETCH = (-0.1, 1.1)
SCALE_RATE = 0.2
"""How fast scales move beside roundings."""
CHUNK = 64
"""Images at a time where nothing is learned."""
SEED = 0
_ADAM = optax.adam(LEARNING_RATE)


class Learned(NamedTuple):
    """Of one block: a number a weight, whose stretched sigmoid says how far it is rounded up, and factors of its scales."""

    rounding: dict[str, Float[Array, "1 ..."]]
    log_scale: dict[str, Float[Array, "1 ..."]]


class Fisher(NamedTuple):
    """Mean magnitudes over images of gradients and errors at a block's output, a row a refresh (zero: not yet taken)."""

    gradients: Float[Array, "R E"]
    errors: Float[Array, "R E"]


def up(rounding: Float[Array, "..."]) -> Float[Array, "..."]:
    """How far a weight is rounded up: 0 to 1, reached at finite numbers."""
    low, high = STRETCH
    return jnp.clip(jax.nn.sigmoid(rounding) * (high - low) + low, 0.0, 1.0)


def start_of_rounding(steps: Float[Array, "..."]) -> Float[Array, "..."]:
    """The numbers at which `up` is the fraction of weights in units of their scale."""
    low, high = STRETCH
    return -jnp.log((high - low) / (steps - jnp.floor(steps) - low) - 1.0)


def dplr_loss(error: Float[Array, "B E"], fisher: Fisher) -> Float[Array, "2"]:
    """The cost of an error at a block's output: by the part of low rank, and by the diagonal."""
    taken = jnp.maximum(jnp.sum(jnp.any(fisher.gradients > 0, axis=1).astype(jnp.float32)), 1.0)
    inverse = jnp.linalg.pinv(fisher.errors @ fisher.errors.T, rtol=1e-4, hermitian=True)
    along = jnp.abs(error) @ fisher.gradients.T
    low_rank = jnp.mean(jnp.einsum("bi,ij,bj->b", along, inverse, along))
    diagonal = jnp.mean(jnp.square(error) * jnp.sum(fisher.gradients, axis=0) / taken)
    return jnp.stack([low_rank, diagonal])


def simulated(learned: Learned, float_block: Blocks, fixed: Blocks, scheme: Scheme) -> Blocks:
    """A block with kernels between two integers, in float, and its scales as they are learned."""
    block = copy_blocks(fixed)
    for site in SITES:
        largest = float(largest_integer(scheme.at(site).weight_bits))
        for group, name in layers_of(block, site):
            if name in learned.rounding:
                scale = fixed[group][name]["kernel"].scale
                steps = jnp.floor(float_block[group][name]["kernel"] / scale) + up(learned.rounding[name])
                block[group][name]["kernel"] = jnp.clip(steps, -largest, largest) * scale
    for site, factor in learned.log_scale.items():
        block["input_scale"][site] = fixed["input_scale"][site] * jnp.exp(SCALE_RATE * factor)
    return block


class Task(NamedTuple):
    """Learning one block: its float parameters and its quantised ones, its plan, and the states before and behind it."""

    float_block: Blocks
    fixed: Blocks
    plan: Any
    rounded: State
    exact: State
    target: State


_STATIC = ("spec", "scheme", "leading")


@functools.partial(jax.jit, static_argnames=_STATIC)
def run_block(
    block: Blocks, state: State, plan: Any, *, spec: BlockSpec, scheme: Scheme | None, leading: tuple[int, int]
) -> State:
    """One block."""
    output = run_blocks(block, state[0], spec, plan=plan, present=state[1], scheme=scheme, leading=leading)
    return output.hidden, output.present


@functools.partial(jax.jit, static_argnames=(*_STATIC, "whole", "unit"))
def _fisher(
    params: Any, plan: Any, after: Int[Array, ""], learned: Learned, task: Task, rows: Int[Array, "B"], *,
    whole: ImageSpec, unit: bool, spec: BlockSpec, scheme: Scheme, leading: tuple[int, int],
) -> Float[Array, "2 E"]:  # fmt: skip
    """Sums over some images of the magnitudes of the final loss's gradient at the block's output and of its error there."""
    exact, target = (_take(state, rows) for state in (task.exact, task.target))

    def features(hidden: Float[Array, "B N D"]) -> Float[Array, "B E"]:
        output = run_blocks(
            params["blocks"], hidden, whole.blocks, start=after, plan=plan, present=target[1], leading=leading
        )
        found = pool(params, output.hidden, whole, output.present)[0].astype(jnp.float32)
        return normalize(found) if unit else found

    wanted = features(target[0])
    block = simulated(learned, task.float_block, task.fixed, scheme)
    hidden, _ = run_block(block, exact, task.plan, spec=spec, scheme=scheme, leading=leading)
    gradient = jax.grad(lambda hidden: 0.5 * jnp.sum(jnp.square(features(hidden) - wanted)))(hidden)
    flat = jnp.stack([gradient, hidden - target[0]]).astype(jnp.float32).reshape(2, len(hidden), -1)
    return jnp.sum(jnp.abs(flat), axis=1)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _steps(
    learned: Learned, moments: Any, fisher: Fisher, task: Task, numbers: Int[Array, "T"], rows: Int[Array, "T B"], *,
    spec: BlockSpec, scheme: Scheme, leading: tuple[int, int],
) -> tuple[Learned, Any]:  # fmt: skip
    """Some steps of Adam under one estimate of the Fisher information."""

    def costs(learned: Learned, number: Int[Array, ""], rows: Int[Array, "B"]) -> Float[Array, "2"]:
        rounded, exact, target = (_take(state, rows) for state in (task.rounded, task.exact, task.target))
        dropped = jax.random.bernoulli(jax.random.fold_in(jax.random.key(SEED), number), 0.5, exact[0].shape)
        state = jnp.where(dropped, exact[0], rounded[0]), exact[1]
        block = simulated(learned, task.float_block, task.fixed, scheme)
        hidden, _ = run_block(block, state, task.plan, spec=spec, scheme=scheme, leading=leading)
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


def learn(learned: Learned, task: Task, fisher_of: Any, rng: np.random.Generator, **static: Any) -> Learned:
    """Learns one block. `fisher_of` gives the two rows of a refresh."""
    moments = _ADAM.init(learned)
    size = len(task.exact[0])
    zeros = jnp.zeros((RANK, int(np.prod(task.target[0].shape[1:]))), jnp.float32)
    fisher = Fisher(zeros, zeros)
    for refresh, numbers in enumerate(np.array_split(np.arange(STEPS, dtype=np.int32), RANK)):
        gradients, errors = fisher_of(learned)
        fisher = Fisher(fisher.gradients.at[refresh].set(gradients), fisher.errors.at[refresh].set(errors))
        rows = np.stack([rng.choice(size, min(IMAGES, size), replace=False) for _ in numbers])
        learned, moments = _steps(learned, moments, fisher, task, jnp.asarray(numbers), jnp.asarray(rows), **static)
    return learned


def fima_q(encoder: Encoder, quantized: Encoder, batches: Batches) -> Encoder:
    """Learns roundings and scales of all quantised blocks, the earlier ones in place. Raises UserError for zero points."""
    image, scheme = encoder.spec.image, quantized.scheme
    assert scheme is not None
    original, blocks = encoder.params["image"]["blocks"], copy_blocks(quantized.params["image"]["blocks"])
    if "input_offset" in blocks or scheme.activations == "float":
        raise UserError("method fima_q goes with activations that are quantised without zero points or noise")
    spec = dataclasses.replace(image.blocks, num_blocks=1)
    exact = _joined([entering(encoder, images) for images in batches])
    rounded, rng = exact, np.random.default_rng(SEED)
    for number in range(image.blocks.num_blocks):
        own = scheme.segments(number, number + 1)[0][2]
        static = {"spec": spec, "scheme": own, "leading": image.leading}
        plan = plan_of_block(encoder.plan, number)
        float_block = jax.tree.map(lambda leaf, n=number: leaf[n : n + 1], original)
        target = _by_batch(float_block, exact, plan, **{**static, "scheme": None})
        task = Task(float_block, segment_params(blocks, number, number + 1, scheme), plan, rounded, exact, target)
        start = _start(task, own)
        if start.rounding:
            after = jnp.int32(number + 1)

            def fisher_of(learned: Learned, task: Task = task, after: Array = after, static: Any = static) -> Any:
                size = len(task.exact[0])
                sums = [
                    _fisher(
                        encoder.params["image"], encoder.plan, after, learned, task, jnp.arange(first, min(first + CHUNK, size)),
                        whole=image, unit=encoder.spec.normalize, **static,
                    )
                    for first in range(0, size, CHUNK)
                ]  # fmt: skip
                return functools.reduce(jnp.add, sums) / size

            settle(blocks, learn(start, task, fisher_of, rng, **static), task, own, number)
        rounded = _by_batch(segment_params(blocks, number, number + 1, scheme), rounded, plan, **static)
        exact = target
    return with_blocks(quantized, blocks)


def _start(task: Task, scheme: Scheme) -> Learned:
    """Roundings at the weights' own fractions, scales as they are; nothing for layers and sites in float."""
    rounding = {}
    for site in SITES:
        for group, name in layers_of(task.fixed, site):
            kernel = task.fixed[group][name]["kernel"]
            if isinstance(kernel, QuantizedTensor):
                exact = task.float_block[group][name]["kernel"].astype(jnp.float32)
                rounding[name] = start_of_rounding(exact / kernel.scale)
    scales = task.fixed.get("input_scale", {})
    chosen = [site for site in scales if site in SITES and scheme.at(site).quantized]
    return Learned(rounding, {site: jnp.zeros_like(scales[site]) for site in chosen})


def settle(blocks: Blocks, learned: Learned, task: Task, scheme: Scheme, number: int) -> None:
    """Puts a block's learned integers and scales into the stack (in place)."""
    for site in SITES:
        largest = largest_integer(scheme.at(site).weight_bits)
        for group, name in layers_of(blocks, site):
            if name in learned.rounding:
                kernel, layer = blocks[group][name]["kernel"], task.float_block[group][name]["kernel"]
                steps = jnp.floor(layer.astype(jnp.float32) / kernel.scale[number : number + 1])
                steps = jnp.clip(steps + (learned.rounding[name] >= 0).astype(jnp.float32), -largest, largest).astype(
                    jnp.int8
                )
                blocks[group][name]["kernel"] = QuantizedTensor(kernel.values.at[number].set(steps[0]), kernel.scale)
    for site, factor in learned.log_scale.items():
        scales = blocks["input_scale"]
        scales[site] = scales[site].at[number].multiply(jnp.exp(SCALE_RATE * factor[0]))


def _take(state: Any, rows: Array) -> Any:
    """Some images of a state."""
    return state[0][rows], None if state[1] is None else state[1][rows]


def _joined(states: list[State]) -> State:
    hidden, present = zip(*states, strict=True)
    return jnp.concatenate(hidden), None if present[0] is None else jnp.concatenate(present)


def _by_batch(block: Blocks, state: State, plan: Any, **static: Any) -> State:
    """One block over the whole calibration set, `CHUNK` images at a time."""
    size = len(state[0])
    parts = [jnp.arange(first, min(first + CHUNK, size)) for first in range(0, size, CHUNK)]
    return _joined([run_block(block, _take(state, rows), plan, **static) for rows in parts])


METHOD = Method(
    "fima_q",
    "roundings and scales learned block by block under the Fisher information",
    finish=fima_q,
    rounds_again=True,
)
