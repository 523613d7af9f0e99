"""The training loop: state, one step, one phase. A phase is a pure function of its state, so it can stop and go on anywhere."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from regcache_jax.core.names import from_names, to_names
from regcache_jax.core.sites import Dense, ImageTower, Parameters
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.core.struct import Struct
from regcache_jax.data.emoji import RENDERINGS, TEMPLATES
from regcache_jax.demo.recipe.augment import Batch, make_batch, over
from regcache_jax.demo.recipe.circuit import FULL_GAIN, Circuit, amplify, plant, reserve
from regcache_jax.demo.recipe.drawings import DrawingSet
from regcache_jax.demo.recipe.forward import observe
from regcache_jax.demo.recipe.losses import Asked, Metrics, Trained, base_loss, circuit_loss, class_vectors, temperature
from regcache_jax.demo.recipe.phases import BLOCK, Phase
from regcache_jax.encoders.encoder import init_params, normalize
from regcache_jax.encoders.tokenizers import load_tokenizer
from regcache_jax.encoders.vision import image_features

NUM_EXAMPLES = 256  # pictures over which the use of each dimension is measured before planting
UNUSED = (-1, -1, -1)  # dimensions of a circuit that is not planted yet


@typing.no_type_check  # JAX and Orbax rebuild pytrees with whatever leaves they have in hand
@struct.dataclass
class State(Struct):
    """All that training has: weights (`encoder`: an encoder's parameters, `probe`), AdamW's moments, the step within the phase,
    and the circuit's dimensions (marker, massive, echo; -1 before planting)."""

    trained: Trained
    moments: Any
    step: Int[Array, ""]
    dimensions: Int[Array, "3"]

    @property
    def circuit(self) -> Circuit:
        """The planted circuit, as plain numbers."""
        return Circuit(BLOCK, *(int(index) for index in self.dimensions))


@functools.partial(jax.jit, static_argnums=(0, 1))
def initial_state(spec: EncoderSpec, seed: int) -> State:
    """Random weights. Position table, probe and word embeddings start large; what writes to the residual stream starts small."""
    blocks = spec.image.blocks
    small = (2 * blocks.num_blocks) ** -0.5
    factors = {
        "image/position_embedding": 0.3 / 0.02,
        "image/head/probe": 0.5 / 0.02,
        "image/blocks/attention/out/kernel": small,
        "image/blocks/mlp/fc2/kernel": small,
        "text/embedding": 0.5 / 0.02,
    }
    flat = to_names(init_params(spec, jax.random.key(seed)))
    flat = {name: leaf * factors.get(name, 1.0) for name, leaf in flat.items()}
    flat |= {"logit_scale": jnp.log(10.0), "logit_bias": jnp.zeros(())}  # a softmax over concepts needs no offset
    kernel = 0.2 * blocks.width**-0.5 * jax.random.normal(jax.random.key(seed + 1), (blocks.width,))
    trained = Trained(from_names(flat), Dense(kernel, jnp.zeros(())))
    return begin_phase(State(trained, None, jnp.zeros((), jnp.int32), jnp.asarray(UNUSED, jnp.int32)))


def begin_phase(state: State) -> State:
    """The same weights with fresh moments, at step 0."""
    return state.replace(moments=optimizer(1.0, 1, 0.0).init(state.trained), step=jnp.zeros((), jnp.int32))


def optimizer(peak_rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    """AdamW with gradient clipping; the rate rises over 100 steps (a tenth of a short phase), then falls along a cosine."""
    warm_up = min(100, max(1, steps // 10))
    rate = optax.warmup_cosine_decay_schedule(peak_rate / warm_up, peak_rate, warm_up, max(steps, 2), 0.002 * peak_rate)
    adam = optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def name_ids(names: Iterable[str], spec: EncoderSpec) -> Int[np.ndarray, "M C T"]:
    """Token ids of every concept's name in every template."""
    assert spec.tokenization is not None
    tokenize = load_tokenizer(spec.tokenization, "")
    listed = list(names)
    return np.stack([tokenize([template.format(c=name) for name in listed]) for template in TEMPLATES])


def make_step(
    phase: Phase, spec: EncoderSpec, circuit: Circuit, ids: Int[np.ndarray, "M C T"], seed: int
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """One compiled training step of a phase."""
    update_rule = optimizer(phase.peak_rate, phase.steps, phase.weight_decay)
    sentences = jnp.asarray(ids)

    def loss_of(trained: Trained, batch: Batch, step: Int[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), step)
        images, labels = jnp.asarray(batch.images), jnp.asarray(batch.labels)
        if phase.weights is None:
            return base_loss(trained, images, labels, rng, sentences, spec, BLOCK)
        progress = step.astype(jnp.float32) / phase.steps
        return circuit_loss(
            trained, images, labels, rng, sentences, spec,
            circuit=circuit, asked=Asked(progress, phase.gain, phase.weights, phase.skipped),
        )  # fmt: skip

    @jax.jit
    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trained, batch, state.step)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            changes, moments = update_rule.update(gradients, state.moments, state.trained)
        trained = optax.apply_updates(state.trained, changes)
        if phase.reserved:
            trained = with_image(trained, reserve(trained.encoder.image, circuit))
        return state.replace(trained=trained, moments=moments, step=state.step + 1), {"loss": loss, **metrics}

    return train_step


def prepare(state: State, phase: Phase, spec: EncoderSpec, drawings: DrawingSet) -> State:
    """What happens once at the beginning of a phase: planting, where there is no circuit yet, and the first projection."""
    image = state.trained.encoder.image
    if phase.weights is not None and int(state.dimensions[0]) < 0:
        usage = dimension_usage(image, spec, make_batch(drawings, NUM_EXAMPLES, seed=0, step=0).images)
        image, circuit = plant(image, state.trained.probe, usage, BLOCK)
        dimensions = jnp.asarray((circuit.marker, circuit.massive, circuit.echo), jnp.int32)
        state = state.replace(dimensions=dimensions)
    if phase.reserved:
        image = reserve(image, state.circuit)
    return begin_phase(state.replace(trained=with_image(state.trained, image)))


def run_phase(
    state: State, phase: Phase, spec: EncoderSpec, batches: Iterator[Batch], ids: Int[np.ndarray, "M C T"], seed: int
) -> Iterator[tuple[State, Metrics]]:
    """Trains from where the state stands to the end of the phase; yields after every step."""
    step = make_step(phase, spec, state.circuit, ids, seed)
    for _ in range(int(state.step), phase.steps):
        state, metrics = step(state, next(batches))
        yield state, metrics


def dimension_usage(image: ImageTower, spec: EncoderSpec, pictures: Float[np.ndarray, "B Y X 3"]) -> Float[Array, "D"]:
    """Mean magnitude of every dimension of the residual stream at the inputs of the blocks around the circuit."""
    seen = jax.jit(lambda image, pictures: observe(image, pictures, spec.image).hidden)(image, jnp.asarray(pictures))
    return jnp.mean(jnp.abs(seen[BLOCK - 2 : BLOCK + 3]), axis=(0, 1, 2))


def with_image(trained: Trained, image: ImageTower) -> Trained:
    """The weights with another image tower."""
    return trained.replace(encoder=trained.encoder.replace(image=image))


def folded(state: State) -> Parameters:
    """An encoder's parameters with the circuit's full gain written into the weights."""
    params = state.trained.encoder
    if int(state.dimensions[0]) < 0:
        return params
    return params.replace(image=amplify(params.image, state.circuit, *FULL_GAIN.at(jnp.ones(()))))


def confusion(
    params: Parameters, spec: EncoderSpec, drawings: DrawingSet, ids: Int[np.ndarray, "M C T"]
) -> Float[np.ndarray, "C C"]:
    """How much probability the training drawings of each concept, on white, give to each name, summed over vendors."""
    names = normalize(
        jnp.mean(jnp.stack([class_vectors(params.text, jnp.asarray(rows), spec) for rows in ids]), axis=0)
    )

    @jax.jit
    def probabilities(image: ImageTower, pictures: Float[Array, "B Y X 3"]) -> Float[Array, "B C"]:
        features = normalize(image_features(image, pictures * 2 - 1, spec.image).features)
        return jax.nn.softmax(temperature(params) * features @ names.T, axis=-1)

    white = np.asarray(RENDERINGS[0].background, np.float32)
    total = np.zeros((len(drawings.names),) * 2, np.float32)
    for column in range(len(drawings.vendors)):
        pictures = np.stack([over(row[column].astype(np.float32) / 255, white) for row in drawings.rgba])
        there = drawings.trains[:, column, None].astype(np.float32)
        total += there * np.asarray(probabilities(params.image, jnp.asarray(pictures)))
    return total
