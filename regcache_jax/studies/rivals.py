"""The simple rivals of RegCache, each as a plan or a scheme, so that one table can hold them all (paper, end).

Every rival that has a number is given its best one by the same label-free error, on the same images, as the search.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regcache_jax.core.plan import RegisterPlan, Schedule, make_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import ImageSpec
from regcache_jax.data.cut import in_batches
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.serving import TokenRegister, token_rows
from regcache_jax.encoders.sheets import grids_of
from regcache_jax.encoders.vision import image_features
from regcache_jax.quantization.calibration import observe
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.places import tokens_of
from regcache_jax.registers.reference import check_images
from regcache_jax.registers.search.parts import make_draws
from regcache_jax.registers.search.result import SearchResult
from regcache_jax.registers.search.search import search
from regcache_jax.registers.search.trial import Trials
from regcache_jax.studies.grid import features_of, label_free_error

PERCENTILES = (99.0, 99.5, 99.7, 99.9, 99.97, 99.99, 99.999)
"""Shares of an activation's values, in percent, that percentile clipping leaves inside the range."""

SCHEMES: dict[str, dict[str, Any]] = {
    "token-group scales": {"activations": "group"},
    "per-token dynamic scales": {"activations": "token"},
}
"""Rivals that are another scheme: what they say instead."""

COPIES = (1.0, 2.5, 6.0, 15.0, 40.0)
DELETE_COUNTS = tuple(range(1, 11))
REGISTER_NEURONS = (1, 2, 5, 10, 20)
"""How many neurons test-time registers move (2506.08010 uses at most a few dozen)."""

TUNING_IMAGES = 128
BATCH = 32
"""Images that a random or mean token, and the moved neurons, are taken from."""


@functools.partial(jax.jit, static_argnames=("spec",))
def _patch_rows(
    tower: ImageTower, images: Float[Array, "B Y X 3"], *, spec: ImageSpec
) -> tuple[Float[Array, "L B M H K"], Float[Array, "L B M H K"]]:
    collect = {"key": lambda trace: trace.key, "value": lambda trace: trace.value}
    rows = image_features(tower, images, spec, collect=collect).collected
    return rows["key"][:, :, spec.num_protected :], rows["value"][:, :, spec.num_protected :]


def token_prefixes(
    encoder: Encoder, images: Float[np.ndarray, "B Y X 3"], seed: int
) -> dict[str, tuple[Float[Array, "L 1 H K"], Float[Array, "L 1 H K"]]]:
    """Keys and values of a random patch, of the mean patch, and of nothing (null attention), from one batch of images."""
    rows = _patch_rows(encoder.params.image, jnp.asarray(images, encoder.dtype), spec=encoder.spec.image)
    rng, there = np.random.default_rng(seed), None
    if encoder.spec.image.max_patches is not None:
        there = grids_of(jnp.asarray(images)).there
    image = int(rng.integers(len(images)))
    patch = int(rng.integers(encoder.spec.image.num_patches if there is None else int(there[image].sum())))
    key, value = (row.astype(jnp.float32) for row in rows)
    counted = None if there is None else there[None, :, :, None, None]
    mean_key, mean_value = (each.mean(axis=(1, 2), where=counted)[:, None] for each in (key, value))
    return {
        "random token as prefix": (key[:, image, patch][:, None], value[:, image, patch][:, None]),
        "mean token as prefix": (mean_key, mean_value),
        "zero row (null attention)": (jnp.zeros_like(key[:, :1, 0]), jnp.zeros_like(value[:, :1, 0])),
    }


@functools.partial(jax.jit, static_argnames=("spec",))
def _largest_activations(tower: ImageTower, images: Float[Array, "B Y X 3"], *, spec: ImageSpec) -> Float[Array, "L F"]:
    def largest(trace: BlockTrace) -> Float[Array, "F"]:
        patches, there = trace.fc2[:, spec.num_protected :].astype(jnp.float32), tokens_of(trace, spec)
        patches = patches if there is None else jnp.where(there[..., None], patches, 0)
        extreme = jnp.argmax(jnp.abs(patches), axis=1)[:, None]
        return jnp.mean(jnp.take_along_axis(patches, extreme, axis=1)[:, 0], axis=0)

    return image_features(tower, images, spec, collect={"largest": largest}).collected["largest"]


def move_register_neurons(
    encoder: Encoder, images: Float[np.ndarray, "B Y X 3"], block: int, num_neurons: int
) -> Encoder:
    """Register neurons moved to an extra token (2506.08010): the same float encoder with those neurons silent, and a plan.

    Register neurons are those of blocks 0..`block` that add most to a patch's l-inf norm: mean over images of the largest
    activation, times the largest weight of their output row. The extra token holds what they would have added, enters after
    `block`, and its rows are those of the token form. The source lets the extra token attend to the image; ours attends to
    itself, which makes it the same for every image."""
    spec, tower = encoder.spec.image, encoder.params.image
    blocks = tower.blocks
    activation = np.array(_largest_activations(tower, jnp.asarray(images, encoder.dtype), spec=spec))
    rows = np.array(blocks.mlp.fc2.kernel, np.float32)
    if blocks.layer_scale2 is not None:
        rows *= np.asarray(blocks.layer_scale2, np.float32)[:, None]
    added = np.abs(activation) * np.abs(rows).max(axis=-1)
    added[block + 1 :] = 0.0
    chosen = np.unravel_index(np.argsort(-added, axis=None, kind="stable")[:num_neurons], added.shape)
    hidden = (activation[chosen][:, None] * rows[chosen]).sum(axis=0)
    silent = jax.tree.map(lambda leaf: jnp.asarray(_silence(leaf, chosen)), blocks.mlp.fc1)
    blocks = blocks.with_layers({"fc1": silent})
    encoder = with_blocks(encoder, blocks)
    start, stop = min(block + 1, spec.blocks.num_blocks - 1), spec.blocks.num_blocks
    register = TokenRegister(jnp.asarray(hidden, jnp.float32)[None], jnp.float32(1.0))
    key, value = token_rows(blocks, register, spec.blocks, Schedule(start, stop, 0, 0))
    return encoder.with_plan(make_plan(key, value, start=start))


def _silence(leaf: Float[Array, "L ... F"], chosen: tuple[np.ndarray, ...]) -> np.ndarray:
    """Zeros in the weights or bias that lead to the chosen (block, neuron) pairs: every activation of 0 is 0."""
    array = np.array(leaf)
    array[chosen[0], ..., chosen[1]] = 0
    return array


def rivals(
    encoder: Encoder,
    images: Float[np.ndarray, "n Y X 3"],
    scheme: Scheme,
    result: SearchResult,
    config: SearchConfig | None = None,
    *,
    seed: int = 0,
) -> list[tuple[str, Encoder]]:
    """RegCache and its rivals, quantised with `scheme` (or the scheme that they are) and calibrated on `images`.

    `result` is what `search` found on the same images; the first `TUNING_IMAGES` of them choose the rivals' own numbers. The
    random token is one draw of `seed`. RegCache with percentile clipping is searched once more, by `config`, with the clipping in
    place that suits the plan of `result` best, and is the better of the two plans by the same error."""
    images = np.asarray(images)
    check_images(images, encoder.spec)
    encoder = encoder.with_plan(None)
    tuning, calibration = images[:TUNING_IMAGES], jnp.asarray(images)
    l_q, num_blocks = result.sensitive_block, encoder.spec.image.blocks.num_blocks
    start = result.numbers.start
    entries = (min(start, l_q), min(l_q + 1, num_blocks - 1), l_q, start)
    trials = Trials(encoder, tuning, scheme, entries, make_draws(len(tuning)))
    table = [("no registers", quantize(encoder, calibration, scheme))]

    def best_plan(plans: Iterable[RegisterPlan]) -> RegisterPlan:
        return min(plans, key=lambda plan: trials.errors(plan).mean())

    rows = token_prefixes(encoder, images[:BATCH], seed)
    nothing = make_plan(*rows["zero row (null attention)"], start=l_q, stop=l_q)
    deletions = [
        nothing.replace(delete_block=jnp.int32(block), delete_count=jnp.int32(count))
        for block in trials.entries
        for count in DELETE_COUNTS
        if block >= l_q and count < encoder.spec.image.num_patches
    ]
    plans = {"delete only": best_plan(deletions)}
    for name, (key, value) in rows.items():
        plans[name] = best_plan(make_plan(key, value, copies=copies, start=start) for copies in COPIES)
    plans["prefix only"] = result.plan.prefix_only()
    plans["RegCache"] = result.plan
    table += [(name, quantize(encoder, calibration, scheme, plan)) for name, plan in plans.items()]

    def best_encoder(makers: Iterable[Callable[[], Encoder]]) -> Encoder:
        return min(
            (maker() for maker in makers),
            key=lambda made: label_free_error(features_of(made, tuning), np.asarray(trials.float_outputs.pooled)),
        )

    def moved(count: int) -> Encoder:
        return quantize(move_register_neurons(encoder, tuning[:BATCH], l_q, count), calibration, scheme)

    table.append(("test-time registers", best_encoder(functools.partial(moved, count) for count in REGISTER_NEURONS)))

    def clipped(plan: RegisterPlan | None) -> Encoder:
        """The best percentile; the set is counted once for all of them."""
        counted = observe(encoder if plan is None else encoder.with_plan(plan), in_batches(images, fill=False))
        schemes = [dataclasses.replace(scheme, estimator="percentile", percentile=share) for share in PERCENTILES]
        return best_encoder(functools.partial(quantize, encoder, None, own, plan, counted) for own in schemes)

    table.append(("percentile clipping", clipped(None)))
    for name, options in SCHEMES.items():
        table.append((name, quantize(encoder, calibration, dataclasses.replace(scheme, **options))))
    clipping = clipped(result.plan)
    own = clipping.scheme
    assert own is not None
    again = search(encoder, images, own, dataclasses.replace(config or SearchConfig(), sensitive_block=l_q)).plan
    both = best_encoder([lambda: clipping, functools.partial(quantize, encoder, calibration, own, again)])
    table.append(("RegCache with percentile clipping", both))
    return table
