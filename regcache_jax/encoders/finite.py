"""Where an encoder's values stop being numbers: looked for only once features are found not to be finite."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.names import to_names
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.vision import embed_patches, image_features

PLACES = {
    "hidden": "its input",
    "qkv": "site qkv",
    "query": "the queries",
    "key": "the keys",
    "value": "the values",
    "weights": "the attention weights",
    "out": "site out",
    "fc1": "site fc1",
    "fc2": "site fc2",
}
"""What passes through a block, in its order, in words."""


def not_finite(encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], name: str) -> UserError:
    """What to raise for pictures whose features are not finite: it says where that begins."""
    return UserError(
        f"the features of {name} by {described(encoder)} are not finite; it begins {_begins(encoder, images)}"
    )


def described(encoder: Encoder) -> str:
    """An encoder in a few words: its name, and how it is quantised."""
    scheme = encoder.scheme
    how = "float" if scheme is None else f"{scheme.name}, {scheme.activations} scales, {scheme.method}"
    return f"{encoder.spec.name} ({how})"


def check_weights(encoder: Encoder, part: str | None = None) -> None:
    """Raises UserError that names the first weight, scale or offset that is not finite (of one part: `image`, `text`)."""
    fault = _weights(encoder, "" if part is None else f"{part}/")
    if fault is not None:
        raise UserError(f"{described(encoder)} holds numbers that are not finite: {fault}")


def check_texts(encoder: Encoder, features: Float[np.ndarray, "n E"]) -> None:
    """Raises UserError where features of texts are not finite."""
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        check_weights(encoder, "text")
        raise UserError(
            f"the features of text {int(np.argmax(bad)) + 1} by {described(encoder)} are not finite; it begins in the text tower"
        )


def _weights(encoder: Encoder, below: str) -> str | None:
    """The first leaf that is not finite, of those whose names begin so, and, where it is one of stacked blocks, the block."""
    for name, leaf in to_names(encoder.params).items():
        if not name.startswith(below) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        values = np.asarray(leaf, np.float32)
        if np.isfinite(values).all():
            continue
        block = ""
        if "/blocks/" in name and values.ndim:
            block = f" of block {int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(axis=1)))}"
        return f"{name}{block}"
    return None


def _finite(trace: BlockTrace, place: str) -> Bool[Array, ""]:
    """Whether a value of a block is finite for all tokens that are there."""
    values = getattr(trace, place)
    if place == "weights":
        values = jnp.swapaxes(values, 1, 2)
    good = jnp.isfinite(values).all(axis=tuple(range(2, values.ndim)))
    return jnp.all(good if trace.present is None else good | ~trace.present)


@functools.partial(jax.jit, static_argnames=("spec", "scheme"))
def _look(
    tower: ImageTower,
    images: Float[Array, "B Y X 3"],
    plan: RegisterPlan | None,
    *,
    spec: ImageSpec,
    scheme: Scheme | None,
) -> tuple[Array, dict[str, Array], Array]:
    collect = {place: functools.partial(_finite, place=place) for place in PLACES}
    output = image_features(tower, images, spec, plan=plan, scheme=scheme, collect=collect)
    embedded = jnp.isfinite(embed_patches(tower, images, spec)).all()
    return embedded, output.collected, jnp.isfinite(output.tokens).all()


def _begins(encoder: Encoder, images: Float[np.ndarray, "n Y X 3"]) -> str:
    """The first place that is not finite, in the order in which a picture passes."""
    if not np.isfinite(images).all():
        return "in the preprocessed picture itself"
    if (fault := _weights(encoder, "image/")) is not None:
        return f"in the weights: {fault}"
    pictures = jnp.asarray(images, encoder.dtype)
    embedded, blocks, tokens = jax.device_get(
        _look(encoder.params.image, pictures, encoder.plan, spec=encoder.spec.image, scheme=encoder.scheme)
    )
    if not embedded:
        return "in the patch embedding"
    faults = [(int(np.argmin(good)), place) for place, good in blocks.items() if not good.all()]
    if faults:
        block = min(number for number, _ in faults)
        place = next(place for place in PLACES if (block, place) in faults)
        return f"in block {block} at {PLACES[place]}"
    return "in the serving form alone" if tokens else "after the last block"
