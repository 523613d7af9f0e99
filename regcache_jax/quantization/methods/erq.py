"""ERQ (Zhong et al. 2024, arXiv 2407.06794): weights first make up for rounded activations, then for each other.

Aqer: ridge regression of what the rounded input of a layer loses on that rounded input gives a change of the float kernel.
Wqer: rounded weights' errors are made up for by those not yet rounded, with the rounded inputs' second moments. What differs:
Wqer goes channel by channel, as GPTQ does, not by halves, and rounds to the nearest with no proxy that flips roundings; the
bias is not part of the regression (moments are about their means, and the mean's change is taken from the bias by
`bias_correction` at the end); the penalty is a share of the mean second moment, not a number for all layers; inputs are those
of the float encoder, and norms are not re-parameterised (`repq_vit+erq` does that too). Formulas are those of the authors'
code; the full text was not at hand.
"""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Dense, Grid, QuantizedTensor
from regcache_jax.encoders.blocks import BlockTrace, run_blocks, segment
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.rounding import Run, round_input
from regcache_jax.ops.integers import quantize_weight
from regcache_jax.quantization.kernels import Rounder
from regcache_jax.quantization.methods.bias_correction import bias_correction
from regcache_jax.quantization.methods.by_block import State, all_entering, blocks_of, plan_of_block
from regcache_jax.quantization.methods.gptq import round_with_moments
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed

PENALTY = 0.01
"""What is added to the diagonal of the moments, as a share of its mean."""

Moments = tuple[Float[Array, "C C"], Float[Array, "C C"]]
"""Of a site in one block: the rounded input with itself, and with what rounding took away, both about their means."""


Sums = tuple[Float[Array, "C C"], Float[Array, "C C"], Float[Array, "C"], Float[Array, "C"], Float[Array, ""]]
"""Over tokens, of a site's rounded inputs and of what rounding took, less what they are taken about: products of the first with itself
and with the second, each alone, one."""
About = tuple[Float[Array, "C"], Float[Array, "C"]]
"""What both are taken about."""


@functools.partial(jax.jit, static_argnames=("run", "scheme"))
def _run_block(
    blocks: Block,
    state: State,
    plan: RegisterPlan | None,
    grids: dict[str, Grid],
    about: dict[str, About] | None,
    *,
    run: Run,
    scheme: Scheme,
) -> tuple[State, dict[str, tuple[Sums, About]]]:
    """One float block over one batch, and for every site its sums, taken about given numbers (None: the means here)."""

    def sums(trace: BlockTrace, site: str) -> tuple[Sums, About]:
        inputs, there = getattr(trace, site), trace.present
        own = Scheme(activation_bits=scheme.at(site).activation_bits, activations=scheme.activations)
        rounded = round_input(inputs, grids.get(site, Grid()), site, own, run).astype(jnp.float32)
        there = jnp.ones(inputs.shape[:2], bool) if there is None else there
        keep, count = there.reshape(-1, 1), jnp.sum(there.astype(jnp.float32))
        rows, lost = (part.reshape(there.size, -1) for part in (rounded, inputs.astype(jnp.float32) - rounded))
        middle = None if about is None else about[site]
        if middle is None:
            mean, mean_lost = (jnp.sum(jnp.where(keep, part, 0.0), axis=0) / count for part in (rows, lost))
            middle = mean, mean_lost
        rows, lost = (jnp.where(keep, part - own, 0.0) for part, own in zip((rows, lost), middle, strict=True))
        return (rows.T @ rows, rows.T @ lost, jnp.sum(rows, axis=0), jnp.sum(lost, axis=0), count), middle

    output = run_blocks(
        blocks, state[0], run, plan=plan, present=state[1],
        collect={site: functools.partial(sums, site=site) for site in SITES},
    )  # fmt: skip
    return (output.hidden, output.present), jax.tree.map(operator.itemgetter(0), output.collected)


def rounded_moments(encoder: Encoder, seen: Observed, scheme: Scheme) -> dict[str, list[Moments]]:
    """Moments of every site, a block, streamed over the calibration set with the plan in place: block after block, so that what one
    block shows of one batch is there at a time. Sums are about the first batch's means: so nothing is lost where channels hardly vary."""
    spec = encoder.spec.image
    states = all_entering(encoder, seen.images)
    run = Run(dataclasses.replace(spec.blocks, num_blocks=1), None, spec.protected)
    found: dict[str, list[Moments]] = {site: [] for site in SITES}
    for number in blocks_of(encoder, seen.images, "erq"):
        own = scheme.segments(number, number + 1)[0][2].running
        blocks = segment(encoder.params.image.blocks, number, number + 1, None)
        grids = {site: jax.tree.map(operator.itemgetter(number), grid) for site, grid in seen.grids.items()}
        step = functools.partial(
            _run_block, blocks, plan=plan_of_block(encoder.plan, number), grids=grids, run=run, scheme=own
        )
        total: dict[str, Sums] | None = None
        about: dict[str, About] | None = None
        for index, state in enumerate(states):
            states[index], batch = step(state, about=about)
            about = {site: middle for site, (_, middle) in batch.items()}
            sums = {site: each for site, (each, _) in batch.items()}
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        assert total is not None
        for site in SITES:
            found[site].append(_about_means(*total[site]))
    return found


def _about_means(
    squares: Float[Array, "C C"],
    products: Float[Array, "C C"],
    rounded: Float[Array, "C"],
    lost: Float[Array, "C"],
    count: Float[Array, ""],
) -> Moments:
    mean, mean_lost = rounded / count, lost / count
    return squares / count - jnp.outer(mean, mean), products / count - jnp.outer(mean, mean_lost)


@jax.jit
def reduce_activation_error(
    squares: Float[Array, "C C"], products: Float[Array, "C C"], kernel: Float[Array, "C M"], penalty: Float[Array, ""]
) -> Float[Array, "C M"]:
    """The kernel whose products with the rounded input are nearest to the old one's with the exact input; the old one where the
    moments say nothing (they cannot be factored)."""
    factor = jnp.linalg.cholesky(squares + penalty * jnp.eye(len(squares)))
    change = jax.scipy.linalg.cho_solve((factor, True), products @ kernel)
    return jnp.where(jnp.isfinite(change).all(), kernel + change, kernel)


def erq_rounder(encoder: Encoder, seen: Observed, scheme: Scheme) -> Rounder:
    """Changes the float kernels for the rounded inputs, then rounds them with the rounded inputs' moments."""
    if scheme.activations == "float":
        raise UserError("method erq makes up for rounded activations; with float ones take gptq")
    moments = rounded_moments(encoder, seen, scheme)

    def rounder(site: str, name: str, layer: Dense, bits: int) -> QuantizedTensor:
        changed = []
        for (squares, products), each in zip(moments[site], layer.matrix(), strict=True):
            penalty = PENALTY * jnp.maximum(jnp.mean(jnp.diagonal(squares)), 1e-12)
            changed.append(reduce_activation_error(squares, products, each, penalty))
        layer = layer.replace(kernel=jnp.stack(changed).reshape(layer.floats.shape))
        nearest = quantize_weight(layer.floats, bits, layer.input_axes, scheme.weights == "channel")
        return round_with_moments(layer, nearest.scale, jnp.stack([own[0] for own in moments[site]]), bits)

    return rounder


METHOD = Method(
    "erq",
    "weights make up for rounded activations (ridge regression), then for each other",
    ("images",),
    round=erq_rounder,
    finish=bias_correction,
    passes=2,
)
