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

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Dense, Grid, QuantizedTensor
from regcache_jax.core.spec import Protected
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.rounding import round_input
from regcache_jax.encoders.vision import image_features
from regcache_jax.ops.aqt import quantize_weight
from regcache_jax.quantization.kernels import Rounder
from regcache_jax.quantization.methods.bias_correction import bias_correction
from regcache_jax.quantization.methods.fisher import input_of
from regcache_jax.quantization.methods.gptq import round_with_moments
from regcache_jax.quantization.methods.method import Method
from regcache_jax.quantization.methods.observed import Observed

PENALTY = 0.01
"""What is added to the diagonal of the moments, as a share of its mean."""

Moments = tuple[Float[Array, "C C"], Float[Array, "C C"]]
"""Of a site in one block: the rounded input with itself, and with what rounding took away, both about their means."""


@functools.partial(jax.jit, static_argnames="spec")
def _inputs(params: Any, images: Any, plan: Any, *, spec: Any) -> tuple[dict[str, Array], Array | None]:
    collect = {site: functools.partial(input_of, name=site) for site in SITES}
    output = image_features(
        params, images, spec, plan=plan, collect={**collect, "present": lambda trace: trace.present}
    )
    present = output.collected.pop("present")
    return output.collected, present


@functools.partial(jax.jit, static_argnames=("site", "scheme", "protected"))
def _sums(
    inputs: Float[Array, "B N ..."],
    present: Bool[Array, "B N"] | None,
    grid: Grid,
    about: tuple[Float[Array, "C"], Float[Array, "C"]] | None,
    *,
    site: str,
    scheme: Scheme,
    protected: Protected,
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    """Sums over tokens of one site of one block, of rounded inputs and losses less what they are taken `about` (None: their means
    here): products of the first with itself and with the loss, each alone, one. And what they were taken about."""
    rounded = round_input(inputs, grid, site, scheme, protected).astype(jnp.float32)
    there = jnp.ones(inputs.shape[:2], bool) if present is None else present
    keep, count = there.reshape(-1, 1), jnp.sum(there.astype(jnp.float32))
    rows, lost = rounded.reshape(there.size, -1), (inputs - rounded).astype(jnp.float32).reshape(there.size, -1)
    if about is None:
        mean, mean_lost = (jnp.sum(jnp.where(keep, part, 0.0), axis=0) / count for part in (rows, lost))
        about = mean, mean_lost
    rows, lost = (jnp.where(keep, part - middle, 0.0) for part, middle in zip((rows, lost), about, strict=True))
    return (rows.T @ rows, rows.T @ lost, jnp.sum(rows, axis=0), jnp.sum(lost, axis=0), count), about


def rounded_moments(encoder: Encoder, seen: Observed, scheme: Scheme) -> dict[str, list[Moments]]:
    """Moments of every site, a block, streamed over the calibration set with the plan in place."""
    spec = encoder.spec.image
    totals: dict[tuple[str, int], Any] = {}
    about: dict[
        tuple[str, int], Any
    ] = {}  # the first batch's means: sums about them lose nothing where channels hardly vary
    for images in seen.images:
        images = jnp.asarray(images, encoder.dtype)
        inputs, present = _inputs(encoder.params.image, images, encoder.plan, spec=spec)
        for site in SITES:
            for number in range(spec.blocks.num_blocks):
                bits = scheme.at(site, number).activation_bits
                own = Scheme(activation_bits=bits, activations=scheme.activations)  # few of them, so few compilations
                grid = jax.tree.map(operator.itemgetter(number), seen.grids.get(site, Grid()))
                there = None if present is None else present[number]
                sums, about[site, number] = _sums(
                    inputs[site][number],
                    there,
                    grid,
                    about.get((site, number)),
                    site=site,
                    scheme=own,
                    protected=spec.protected,
                )
                before = totals.get((site, number))
                totals[site, number] = sums if before is None else jax.tree.map(jnp.add, before, sums)
    return {site: [_about_means(*totals[site, n]) for n in range(spec.blocks.num_blocks)] for site in SITES}


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
)
