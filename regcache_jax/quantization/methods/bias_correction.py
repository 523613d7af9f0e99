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
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.spec import BlockSpec
from regcache_jax.encoders.blocks import BlockTrace, round_input, run_blocks, segment_params
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.kernels import INPUT_AXES, Blocks, copy_blocks, layers_of
from regcache_jax.ops.aqt import QuantizedTensor
from regcache_jax.quantization.methods.by_block import State, entering, plan_of_block
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.quantization.methods.method import Batches, Method
from regcache_jax.quantization.methods.statistics import site_tokens

Means = dict[str, tuple[Float[Array, "C"], Float[Array, "C"]]]
"""A site's mean input, before and after rounding."""


@functools.partial(jax.jit, static_argnames=("spec", "scheme", "leading"))
def _run_block(
    params: Blocks, state: State, plan: Any, *, spec: BlockSpec, scheme: Scheme, leading: tuple[int, int]
) -> tuple[State, Any]:
    """One block, and for every site the sums over its tokens of its input, before and after rounding, and their number."""
    block = jax.tree.map(lambda leaf: leaf[0], params)

    def sums(trace: BlockTrace, site: str) -> tuple[Array, Array, Array]:
        rows, present = site_tokens(trace, site)
        rounded = rows
        if scheme.activations != "float":
            inputs = round_input(getattr(trace, site), block, site, scheme, leading)
            rounded = site_tokens(trace._replace(**{site: inputs}), site)[0]
        return jnp.sum(rows, axis=0), jnp.sum(rounded, axis=0), jnp.sum(present.astype(jnp.float32))

    sites = [site for site in SITES if scheme.at(site).quantized]
    output = run_blocks(
        params, state[0], spec, plan=plan, present=state[1], scheme=scheme, leading=leading,
        collect={site: functools.partial(sums, site=site) for site in sites},
    )  # fmt: skip
    return (output.hidden, output.present), jax.tree.map(lambda leaf: leaf[0], output.collected)


def bias_correction(encoder: Encoder, quantized: Encoder, batches: Batches) -> Encoder:
    """Corrects the biases of all quantised layers; float layers are left alone."""
    spec, scheme = encoder.spec.image, quantized.scheme
    assert scheme is not None
    states = [entering(encoder, images) for images in batches]
    original = encoder.params["image"]["blocks"]
    blocks = copy_blocks(quantized.params["image"]["blocks"])
    alone = dataclasses.replace(spec.blocks, num_blocks=1)
    for block in range(spec.blocks.num_blocks):
        own = scheme.segments(block, block + 1)[0][2]
        run = functools.partial(
            _run_block, plan=plan_of_block(encoder.plan, block), spec=alone, scheme=own.running, leading=spec.leading
        )
        _, means = _over_batches(run, segment_params(blocks, block, block + 1, scheme), states)
        for site in means:
            _correct(blocks, original, block, site, *means[site])
        states, _ = _over_batches(run, segment_params(blocks, block, block + 1, scheme), states)
    return with_blocks(quantized, blocks)


def _over_batches(run: Any, params: Blocks, states: list[State]) -> tuple[list[State], Means]:
    """One block over all batches: the states after it and the means of its sites."""
    outputs = [run(params, state) for state in states]
    total = functools.reduce(lambda one, other: jax.tree.map(jnp.add, one, other), (sums for _, sums in outputs))
    means = {site: (before / count, after / count) for site, (before, after, count) in total.items()}
    return [state for state, _ in outputs], means


def _correct(
    blocks: Blocks, original: Blocks, block: int, site: str, before: Float[Array, "C"], after: Float[Array, "C"]
) -> None:
    """Takes the shift of the mean output from the biases of a site's layers in one block (in place)."""
    for group, name in layers_of(blocks, site):
        layer, kernel = blocks[group][name], original[group][name]["kernel"][block].astype(jnp.float32)
        rounded = QuantizedTensor(layer["kernel"].values[block], layer["kernel"].scale[block]).dequantize()
        axes = len(INPUT_AXES[name])
        inputs = kernel.shape[:axes]
        shift = jnp.tensordot(after.reshape(inputs), rounded, axes) - jnp.tensordot(
            before.reshape(inputs), kernel, axes
        )
        bias = layer.get("bias", jnp.zeros((len(original["norm1"]["scale"]), *shift.shape)))
        layer["bias"] = bias.astype(jnp.float32).at[block].add(-shift)


METHOD = Method("bias_correction", "rounding no longer shifts the mean of a layer's output", finish=bias_correction)
