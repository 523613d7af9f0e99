"""Linear probe: multinomial logistic regression on frozen features, fitted by L-BFGS, its weight decay chosen on held-out pictures.

Minimises mean cross-entropy + weight_decay / 2 * ||weights||^2 (the bias is free). That is scikit-learn's LogisticRegression with
C = 1 / (n * weight_decay), the protocol of CLIP (arXiv 2103.00020, appendix A.3), which sweeps C in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import Encoder, encode, encode_image
from regcache_jax.evaluation.classes import join_classes
from regcache_jax.evaluation.evaluators.labelled import classified, for_all_classes, trained
from regcache_jax.evaluation.job import Found, Job
from regcache_jax.evaluation.metrics import predictions


def run(job: Job) -> Found:
    """Accuracy of a probe that is fitted to the `features` (a name of FEATURES) of the training pictures."""
    assert job.bank is not None
    chosen = features_of(job.options.features, job.encoder)
    training, rows = job.encode(chosen, job.bank), job.encode(chosen, job.data)
    joined = join_classes(job.bank, training, job.data, rows)
    own = joined.training >= 0
    probe = fit_probe(training.features[own], joined.training[own], joined.num_trained)
    score = for_all_classes(probe.scores, joined)
    return trained(classified(rows, joined.tested, score, job.reference), joined, training)


WEIGHT_DECAYS = tuple(10.0**power for power in range(-6, 1))
HELD_OUT = 5
"""One training picture in so many chooses the weight decay."""


class Probe(NamedTuple):
    """A linear classifier on features shifted by `mean` and divided by `deviation`, and the weight decay it was fitted with."""

    weights: Float[np.ndarray, "E C"]
    bias: Float[np.ndarray, "C"]
    mean: Float[np.ndarray, "E"]
    deviation: Float[np.ndarray, "E"]
    weight_decay: float

    def scores(self, features: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n C"]:
        """Logits of every class."""
        return (features - self.mean) / self.deviation @ self.weights + self.bias


def fit_probe(
    features: Float[np.ndarray, "n E"],
    labels: Int[np.ndarray, "n"],
    num_classes: int,
    *,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    steps: int = 500,
    held_out: Bool[np.ndarray, "n"] | None = None,
) -> Probe:
    """The probe of the weight decay with the best accuracy on held-out training pictures (ties: the larger), refitted on all.

    `held_out` says which choose the weight decay; by default a fifth, drawn with a fixed seed.
    Raises UserError for unlabelled pictures and for too few of them."""
    if labels.min(initial=-1 if not len(labels) else 0) < 0:
        raise UserError("a linear probe needs labelled training pictures (one folder a class)")
    if len(features) < HELD_OUT:
        raise UserError(f"a linear probe needs {HELD_OUT} training pictures or more, got {len(features)}")
    if held_out is None:
        order = np.random.default_rng(0).permutation(len(features))
        held, kept = order[::HELD_OUT], np.delete(order, np.s_[::HELD_OUT])
    else:
        held, kept = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    fit = functools.partial(_fit, num_classes=num_classes, steps=steps)
    decays = sorted(weight_decays, reverse=True)

    def accuracy(decay: float) -> float:
        scores = fit(features[kept], labels[kept], decay).scores(features[held])
        return float(np.mean(predictions(scores) == labels[held]))

    best = decays[int(np.argmax([accuracy(decay) for decay in decays]))] if len(decays) > 1 else decays[0]
    return fit(features, labels, best)


def class_token(encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"]) -> Float[Array, "B D"]:
    """The class token after the final norm, before any projection."""
    return encode(encoder, images).tokens[:, 0].astype(jnp.float32)


def class_token_and_mean(encoder: Encoder, images: Float[Array | np.ndarray, "B Y X 3"]) -> Float[Array, "B F"]:
    """The class token joined to the mean of the patch tokens that are left, both after the final norm (F = 2 D): what DINOv2's
    linear evaluation takes (arXiv 2304.07193, appendix B)."""
    tokens = encode(encoder, images).tokens.astype(jnp.float32)
    mean = jnp.mean(tokens[:, encoder.spec.image.num_protected :], axis=1)
    return jnp.concatenate([tokens[:, 0], mean], axis=1)


FEATURES = {"pooled": encode_image, "class": class_token, "class+mean": class_token_and_mean}
"""What a probe may be fitted to: what the encoder returns, or its tokens."""


def features_of(name: str, encoder: Encoder) -> Callable[[Encoder, Any], Float[Array, "B F"]]:
    """One of FEATURES. Raises UserError where the encoder has no class token to take."""
    if name != "pooled" and not encoder.spec.image.class_token:
        raise UserError(f"{encoder.spec.name} has no class token; use --features pooled")
    return FEATURES[name]


def _fit(
    features: Float[np.ndarray, "n E"],
    labels: Int[np.ndarray, "n"],
    weight_decay: float,
    *,
    num_classes: int,
    steps: int,
) -> Probe:
    mean = features.mean(axis=0)
    deviation = np.float32(np.sqrt(np.mean((features - mean) ** 2)) or 1.0) * np.ones_like(
        mean
    )  # one scale for all axes
    inputs = jnp.asarray((features - mean) / deviation, jnp.float32)
    weights, bias = _minimise(inputs, jnp.asarray(labels), jnp.float32(weight_decay), num_classes, steps)
    return Probe(np.asarray(weights), np.asarray(bias), mean, deviation, weight_decay)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _minimise(
    inputs: Float[Array, "n E"], labels: Int[Array, "n"], decay: Float[Array, ""], num_classes: int, steps: int
) -> tuple[Float[Array, "E C"], Float[Array, "C"]]:
    """L-BFGS from zero, until the gradient's largest entry is below 1e-6 or `steps` are done."""

    def loss(params: tuple[Array, Array]) -> Array:
        logits = jnp.matmul(inputs, params[0], precision="highest") + params[1]
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return entropy + jnp.float32(0.5) * decay * jnp.sum(params[0] ** 2)

    solver = optax.lbfgs()
    start = (jnp.zeros((inputs.shape[1], num_classes), jnp.float32), jnp.zeros(num_classes, jnp.float32))
    value_and_grad = optax.value_and_grad_from_state(loss)

    def unfinished(carry: tuple) -> Array:
        step, _, _, largest = carry
        return (step < steps) & (largest > jnp.float32(1e-6))

    def advance(carry: tuple) -> tuple:
        step, params, state, _ = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        largest = optax.tree.norm(gradient, ord=jnp.inf)
        return step + 1, optax.apply_updates(params, updates), state, largest

    carry = (jnp.int32(0), start, solver.init(start), jnp.float32(jnp.inf))
    return jax.lax.while_loop(unfinished, advance, carry)[1]
