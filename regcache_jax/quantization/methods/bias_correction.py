"""Bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2): rounding no longer shifts the mean of a layer's output.

Block after block of the quantised encoder, on the inputs that its layers get there: the mean of a layer's product with rounded
inputs and weights is compared with that of the same inputs and float weights, and the difference is taken from the bias.
What differs: the paper knows the mean input from the norm before it and corrects the weights' rounding alone; ours
is measured, and inputs' rounding is corrected as well. Comparing with the float encoder's own means instead (the paper's
appendix D) was tried and is far worse where there are sinks, whose change then shifts all other tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.scheme import SITES
from regcache_jax.core.sites import Block
from regcache_jax.encoders.blocks import BlockTrace, run_blocks, segment
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.rounding import Run, round_input
from regcache_jax.quantization.methods.by_block import State, all_entering, blocks_of, plan_of_block
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed
from regcache_jax.quantization.methods.statistics import site_tokens

Means = dict[str, tuple[Float[Array, "C"], Float[Array, "C"]]]
"""A site's mean input, before and after rounding."""


@functools.partial(jax.jit, static_argnames=("run"))
def _run_block(blocks: Block, state: State, plan: Any, *, run: Run) -> tuple[State, Any]:
    """One block, and for every site the sums over its tokens of its input, before and after rounding, and their number."""
    block, scheme = jax.tree.map(operator.itemgetter(0), blocks), run.scheme
    assert scheme is not None

    def sums(trace: BlockTrace, site: str) -> tuple[Array, Array, Array]:
        rows, present = site_tokens(trace, site)
        rounded = rows
        if scheme.activations != "float":
            inputs = round_input(getattr(trace, site), block.grids.of(site), site, scheme, run)
            rounded = site_tokens(trace._replace(**{site: inputs}), site)[0]
        return jnp.sum(rows, axis=0), jnp.sum(rounded, axis=0), jnp.sum(present.astype(jnp.float32))

    sites = [site for site in SITES if scheme.at(site).quantized]
    output = run_blocks(
        blocks, state[0], run, plan=plan, present=state[1],
        collect={site: functools.partial(sums, site=site) for site in sites},
    )  # fmt: skip
    return (output.hidden, output.present), jax.tree.map(operator.itemgetter(0), output.collected)


def bias_correction(encoder: Encoder, quantized: Encoder, seen: Observed) -> Encoder:
    """Corrects the biases of all quantised layers; float layers are left alone."""
    spec, scheme = encoder.spec.image, quantized.scheme
    assert scheme is not None
    states = all_entering(encoder, seen.images)
    original = encoder.params.image.blocks
    blocks = quantized.params.image.blocks
    alone = dataclasses.replace(spec.blocks, num_blocks=1)
    for block in blocks_of(encoder, seen.images, "biases"):
        own = scheme.segments(block, block + 1)[0][2]
        run = Run(alone, own.running, spec.protected)
        step = functools.partial(_run_block, plan=plan_of_block(encoder.plan, block), run=run)
        _, means = _over_batches(step, segment(blocks, block, block + 1, scheme), states)
        for site, (before, after) in means.items():
            blocks = _corrected(blocks, original, block, site, after, before)
        states, _ = _over_batches(step, segment(blocks, block, block + 1, scheme), states)
    return with_blocks(quantized, blocks)


def _over_batches(step: Any, blocks: Block, states: list[State]) -> tuple[list[State], Means]:
    """One block over all batches: the states after it and the means of its sites."""
    outputs = [step(blocks, state) for state in states]
    total = functools.reduce(lambda one, other: jax.tree.map(jnp.add, one, other), (sums for _, sums in outputs))
    means = {site: (before / count, after / count) for site, (before, after, count) in total.items()}
    return [state for state, _ in outputs], means


def _corrected(
    blocks: Block, original: Block, block: int, site: str, after: Float[Array, "C"], before: Float[Array, "C"]
) -> Block:
    """Takes the shift of the mean output from the biases of a site's layers in one block."""
    corrected = {}
    for name, layer in blocks.layers(site).items():
        kernel = original.layers(site)[name].floats[block].astype(jnp.float32)
        rounded = jax.tree.map(operator.itemgetter(block), layer.integers).dequantize()
        inputs, axes = kernel.shape[: layer.num_inputs], layer.num_inputs
        shift = jnp.tensordot(after.reshape(inputs), rounded, axes) - jnp.tensordot(
            before.reshape(inputs), kernel, axes
        )
        bias = jnp.zeros((blocks.num_blocks, *shift.shape)) if layer.bias is None else layer.bias
        corrected[name] = layer.replace(bias=bias.astype(jnp.float32).at[block].add(-shift))
    return blocks.with_layers(corrected)


METHOD = Method(
    "bias_correction",
    "rounding no longer shifts the mean of a layer's output",
    ("images",),
    finish=bias_correction,
    passes=1,
)
