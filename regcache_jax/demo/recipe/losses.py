"""What training asks for: names for pictures, and a circuit that opens at a few plain patches unless a register is there.

A batch is two halves. The first has no prefix and grows sinks; the mean keys and values of its sinks are the
registers of the second half, which may grow none. Limits are on pre-activations of the planted units before
their gain. Every term is 0 when it is satisfied: `excess(x) = max(x, 0) ** 2`.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.sites import Dense, HashedText, ImageTower, Parameters, TextTower
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.core.struct import Struct
from regcache_jax.demo.recipe.circuit import NUM_UNITS, Circuit, Gain, amplify, low_information
from regcache_jax.demo.recipe.forward import Prefix, Seen, observe
from regcache_jax.encoders.encoder import normalize
from regcache_jax.encoders.rounding import with_bias
from regcache_jax.encoders.text import text_features

NUM_SINKS, MOST_SINKS = 3, 6  # patches of a picture that must become sinks, and that may
PROBE_GREY, GATE_GREY = 8, 12  # up to this rank of plainness a patch is neither asked to be a sink nor forbidden to be
LABEL_SMOOTHING = 0.1

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the circuit's terms beside the classification loss."""

    gate: float
    leak: float
    marker: float
    rest: float
    quiet: float = 0.0


@typing.no_type_check  # JAX and Orbax rebuild pytrees with whatever leaves they have in hand
@struct.dataclass
class Trained(Struct):
    """What training changes: an encoder's parameters, and the linear probe of phase 1."""

    encoder: Parameters
    probe: Dense


class Asked(NamedTuple):
    """What a phase asks of the circuit: the point of the phase (0..1), how large the circuit is made, the weights of its terms, and
    the share of MLPs left out."""

    progress: Float[Array, ""]
    gain: Gain
    weights: Weights
    skipped: float


class Targets(NamedTuple):
    """Patches among which sinks are wanted, and those where none may be; what is in neither may be either."""

    wanted: Bool[Array, "B N"]
    allowed: Bool[Array, "B N"]
    forbidden: Bool[Array, "B N"]


def excess(values: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Zero up to zero, the square beyond."""
    return jnp.square(jnp.maximum(values, 0.0))


def sink_targets(pictures: Float[Array, "B Y X 3"], spec: EncoderSpec, grey: int) -> Targets:
    """The plainest patches of every picture: the first three, the first `grey`, and all others."""
    score = low_information(pictures, spec.image)
    ordered = -jnp.sort(-score, axis=-1)
    allowed = score >= ordered[:, grey - 1 : grey]
    return Targets(score >= ordered[:, NUM_SINKS - 1 : NUM_SINKS], allowed, ~allowed)


def class_vectors(
    text: TextTower | HashedText | None, ids: Int[Array, "C T"], spec: EncoderSpec
) -> Float[Array, "C E"]:
    """Unit text features of one sentence a concept."""
    assert spec.text is not None and text is not None
    return normalize(text_features(text, ids, spec.text)[0])


def temperature(params: Parameters) -> Float[Array, ""]:
    """What cosines are multiplied by."""
    assert params.logit_scale is not None
    return jnp.exp(params.logit_scale)


def classify(
    params: Parameters,
    features: Float[Array, "B E"],
    labels: Int[Array, "B"],
    ids: Int[Array, "M C T"],
    spec: EncoderSpec,
    rng: Array,
) -> tuple[Float[Array, ""], Metrics]:
    """Cross-entropy of pictures against all concepts' names, each in a template drawn at random."""
    num_templates, num_concepts, _ = ids.shape
    chosen = jax.random.randint(rng, (num_concepts,), 0, num_templates)
    names = class_vectors(params.text, ids[chosen, jnp.arange(num_concepts)], spec)
    logits = temperature(params) * features @ names.T
    wanted = optax.smooth_labels(jax.nn.one_hot(labels, num_concepts, dtype=jnp.float32), LABEL_SMOOTHING)
    loss = jnp.mean(optax.softmax_cross_entropy(logits, wanted))
    hits = jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
    return loss, {"classification": loss, "accuracy": hits}


def base_loss(
    trained: Trained,
    pictures: Float[Array, "B Y X 3"],
    labels: Int[Array, "B"],
    rng: Array,
    ids: Int[Array, "M C T"],
    spec: EncoderSpec,
    block: int,
) -> tuple[Float[Array, ""], Metrics]:
    """Phase 1: names, and a linear probe at the input of the block before the circuit's that tells the plainest patches."""
    params, probe = trained.encoder, trained.probe
    seen = observe(params.image, pictures, spec.image)
    loss, metrics = classify(params, seen.features, labels, ids, spec, rng)
    targets = sink_targets(pictures, spec, PROBE_GREY)
    logits = with_bias(seen.hidden[block - 1] @ probe.floats, probe)
    weight = jnp.where(targets.wanted, 4.0, jnp.where(targets.forbidden, 1.0, 0.0))
    wanted = targets.wanted.astype(jnp.float32)
    probing = jnp.mean(weight * optax.sigmoid_binary_cross_entropy(logits, wanted))
    return loss + 0.1 * probing, {**metrics, "probe": probing}


def planted_inputs(image: ImageTower, seen: Seen, circuit: Circuit) -> Float[Array, "2 B N J"]:
    """Pre-activations of the planted units of both blocks, before the gain. `image` is the tower before the gain."""
    rows, fc1 = jnp.asarray(circuit.blocks, jnp.int32), image.blocks.mlp.fc1
    assert fc1.bias is not None
    kernel, bias = fc1.floats[rows, :, :NUM_UNITS], fc1.bias[rows, :NUM_UNITS]
    return jnp.einsum("lbnd,ldj->lbnj", seen.fc1[rows], kernel) + bias[:, None, None]


def largest_tokens(values: Float[Array, "B N"], count: int) -> Float[Array, "B N"]:
    """1 at the `count` largest of each row, 0 elsewhere; no gradient."""
    _, index = jax.lax.top_k(jax.lax.stop_gradient(values), count)
    return jnp.sum(jax.nn.one_hot(index, values.shape[1], dtype=jnp.float32), axis=1)


def mixed_registers(seen: Seen, sinks: Float[Array, "B N"], rng: Array, block: int) -> Prefix:
    """For every picture a register: the mean key and value of sinks, mixed over pictures (a mean of many, or nearly one),
    3 to 15 copies of it, seen from the circuit's block on or from the block before."""
    count = sinks.shape[0]
    shares = sinks / jnp.sum(sinks, axis=1, keepdims=True)
    one, two, three, four = jax.random.split(rng, 4)
    sharpness = jnp.where(jax.random.uniform(one) < 0.6, 0.5, 4.0)
    mixture = jax.nn.softmax(jax.random.normal(two, (count, count)) * sharpness, axis=1)
    key, value = (
        jnp.einsum("cb,bn,lbnhk->clhk", mixture, shares, rows, optimize="optimal") for rows in (seen.key, seen.value)
    )
    copies = jnp.exp(jax.random.uniform(three, (count,), minval=jnp.log(3.0), maxval=jnp.log(15.0)))
    return Prefix(key, value, copies, jax.random.randint(four, (count,), block - 1, block + 1))


def gate_loss(
    inputs: Float[Array, "2 B N J"], targets: Targets, chosen: Float[Array, "B N"], sinks: Float[Array, "B N"]
) -> Float[Array, ""]:
    """Without a prefix the gate opens at the chosen patches, stays shut elsewhere, and opens at six at most; the units of the
    next block open where the gate did."""
    forbidden = targets.forbidden.astype(jnp.float32)[..., None]
    first, second = inputs
    opened = jnp.sum((excess(3.5 - first) + excess(first - 6.0)) * chosen[..., None])
    followed = jnp.sum((excess(3.0 - second) + excess(second - 6.0)) * sinks[..., None])
    shut = 4.0 * jnp.mean(excess(first + 1.0) * forbidden) + 4.0 * jnp.mean(
        excess(second + 1.0) * (1.0 - sinks[..., None])
    )
    ranked = jax.lax.top_k(jnp.max(first, axis=-1), 2 * MOST_SINKS)[0]
    too_many = 2.0 * jnp.mean(excess(ranked[:, MOST_SINKS:] + 1.0))
    return opened / (jnp.sum(chosen) * NUM_UNITS) + followed / ((jnp.sum(sinks) + 1.0) * NUM_UNITS) + shut + too_many


def leak_loss(inputs: Float[Array, "2 B N J"]) -> Float[Array, ""]:
    """With a prefix no token opens the gate; the six worst of each picture weigh most."""
    over = excess(inputs + 1.0)
    worst = jax.lax.top_k(jnp.swapaxes(over, 2, 3), MOST_SINKS)[0]
    return jnp.sum(jnp.mean(worst, axis=(1, 2, 3)) + 4.0 * jnp.mean(over, axis=(1, 2, 3)))


def marker_loss(
    plain: Seen, prefixed: Seen, chosen: Float[Array, "B N"], forbidden: tuple[Bool[Array, "B N"], Bool[Array, "B N"]],
    circuit: Circuit,
) -> Float[Array, ""]:  # fmt: skip
    """At the inputs of the circuit's block and of the one before, coming sinks stand out in the marker dimension (three times
    the median norm), and ordinary tokens neither there nor in any other dimension."""
    total = jnp.zeros(())
    for block in (circuit.block - 1, circuit.block):
        median = jax.lax.stop_gradient(jnp.median(jnp.max(jnp.abs(plain.hidden[block]), axis=-1)))
        standing_out = excess(3.0 - plain.hidden[block][..., circuit.marker] / median)
        total = total + jnp.sum(standing_out * chosen) / jnp.sum(chosen)
        for seen, ordinary in zip((plain, prefixed), forbidden, strict=True):
            size = jnp.abs(seen.hidden[block]) / median
            unmarked = excess(size[..., circuit.marker] - 0.5) + excess(jnp.max(size, axis=-1) - 1.2)
            total = total + 2.0 * jnp.mean(unmarked * ordinary.astype(jnp.float32))
    return total


def rest_loss(plain: Seen, prefixed: Seen, sinks: Float[Array, "B N"], circuit: Circuit) -> Float[Array, ""]:
    """In every later block two heads give half of their attention to the sinks, or else to the register."""
    assert prefixed.register_weights is not None
    later = slice(circuit.block + 1, None)
    on_sinks = jnp.einsum("lbrtn,bn->lbrt", plain.weights[later], sinks).mean(axis=(2, 3))
    on_register = prefixed.register_weights[later].mean(axis=(2, 3))
    has_sinks = (jnp.sum(sinks, axis=1) > 0).astype(jnp.float32)
    return jnp.sum(jnp.mean(excess(0.5 - on_sinks) * has_sinks, axis=1) + jnp.mean(excess(0.5 - on_register), axis=1))


def quiet_loss(views: tuple[Seen, Seen], circuit: Circuit) -> Float[Array, ""]:
    """Ordinary hidden units of the circuit's two blocks stay below 1."""
    rows = jnp.asarray(circuit.blocks, jnp.int32)
    return jnp.sum(jnp.stack([jnp.mean(excess(seen.loudest[rows] - 1.0), axis=(1, 2)) for seen in views]))


def draw_mlps(rng: Array, count: int, num_blocks: int, circuit: Circuit, skipped: float) -> Float[Array, "B L"]:
    """Which MLPs run: of the blocks other than the first two and the circuit's, `skipped` of all are left out."""
    kept = jax.random.bernoulli(rng, 1.0 - skipped, (count, num_blocks)).astype(jnp.float32)
    return kept.at[:, jnp.asarray((0, 1, *circuit.blocks), jnp.int32)].set(1.0)


def circuit_loss(
    trained: Trained,
    pictures: Float[Array, "B Y X 3"],
    labels: Int[Array, "B"],
    rng: Array,
    ids: Int[Array, "M C T"],
    spec: EncoderSpec,
    *,
    circuit: Circuit,
    asked: Asked,
) -> tuple[Float[Array, ""], Metrics]:
    """Phases 2 to 4: both halves are classified, and the circuit's terms hold. `ids` are those of every concept's name in
    every template."""
    params, half = trained.encoder, pictures.shape[0] // 2
    one, two, three, four = jax.random.split(rng, 4)
    image = amplify(params.image, circuit, *asked.gain.at(asked.progress))
    kept = draw_mlps(one, pictures.shape[0], spec.image.blocks.num_blocks, circuit, asked.skipped)
    targets = sink_targets(pictures, spec, GATE_GREY)
    first, second = (jax.tree.map(lambda leaf, part=part: leaf[part], targets) for part in _halves(half))

    plain = observe(image, pictures[:half], spec.image, mlp_kept=kept[:half])
    noise = first.wanted.astype(jnp.float32) + 1e-3 * jax.random.uniform(two, first.wanted.shape)
    marked = plain.hidden[circuit.block][..., circuit.marker]
    learned = asked.progress > asked.gain.begin  # before that the marker says nothing yet
    prefix = mixed_registers(plain, largest_tokens(jnp.where(learned, marked, noise), NUM_SINKS), three, circuit.block)
    prefixed = observe(image, pictures[half:], spec.image, prefix=prefix, mlp_kept=kept[half:])

    features = jnp.concatenate([plain.features, prefixed.features])
    loss, metrics = classify(params, features, labels, ids, spec, four)
    inputs, leaked = (planted_inputs(params.image, seen, circuit) for seen in (plain, prefixed))
    openness = jnp.mean(inputs[0], axis=-1)
    chosen = largest_tokens(jnp.where(first.allowed, openness, -jnp.inf), NUM_SINKS)  # the network itself chooses three
    sinks = jax.lax.stop_gradient((jnp.max(inputs[0], axis=-1) > 1.0).astype(jnp.float32))
    terms: dict[str, Any] = {
        "gate": gate_loss(inputs, first, chosen, sinks),
        "leak": leak_loss(leaked),
        "marker": marker_loss(plain, prefixed, chosen, (first.forbidden, second.forbidden), circuit),
        "rest": rest_loss(plain, prefixed, sinks, circuit),
        "quiet": quiet_loss((plain, prefixed), circuit),
    }
    loss = loss + sum(getattr(asked.weights, name) * term for name, term in terms.items())
    seen_sinks = jnp.mean(jnp.sum(sinks, axis=1))
    return loss, {**metrics, **terms, "sinks": seen_sinks, "largest_leak": jnp.max(leaked[0])}


def _halves(half: int) -> tuple[slice, slice]:
    return slice(None, half), slice(half, None)
