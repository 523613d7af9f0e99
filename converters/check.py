"""`--check`: the original in PyTorch and ours on the same pictures and texts: block by block, features, scores, pixels and words."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image
from regcache_jax.converters.reference import (
    find_reference,
    named_rows,
    reference_ids,
    reference_pixels,
    run_reference,
)

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.classifier import class_scores
from regcache_jax.encoders.encoder import Encoder, normalize
from regcache_jax.encoders.sheets import fitted, sheet_of
from regcache_jax.encoders.text import text_features
from regcache_jax.encoders.vision import image_features
from regcache_jax.models.folder import Model

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of the largest value, by what the weights are kept in. Sums in another order make 1e-6 to 1e-5, eight bits of mantissa about 1e-2
after some blocks; a wrong activation, filter, end of text or epsilon makes more."""
PICTURE = (77, 53)
"""Width and height of the picture whose preprocessing is compared: odd, so that every rounding of sizes and offsets shows."""
SENTENCES = ("a photo of a cat", "", "Two Dogs, it's 2026!", "a word " * 100)
"""Texts whose ids are compared: plain, empty, with what cleaning changes, and longer than the context."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far ours is from the original: the largest difference, that over the largest magnitude, and the ratio of norms."""

    what: str
    largest: float
    worst: float
    typical: float


def check(source: str, model: Model | Encoder, *, num_images: int = 2, seed: int = 0) -> list[Difference]:
    """Runs transformers on the checkpoint and our encoder on the same random pictures and token ids, in float32.

    Gives a row for the hidden state that enters each block (image, then text), the pooled image and text features before they are
    normalised, and the scores of pictures and texts, or of classes (logits). Of a model folder also: the pixels of a picture of odd
    size, where the checkpoint describes its processor, and the ids of some sentences (the share that differs), where it has a
    tokenizer. Raises UserError without transformers or for a layout it does not read."""
    encoder = model.encoder if isinstance(model, Model) else model
    folder = find_reference(source)
    images, ids = random_inputs(encoder, num_images, seed)
    theirs = run_reference(folder, images, ids)
    ours = run_ours(encoder, images, ids)
    rows = [difference(what, ours[what], theirs[what]) for what in theirs]
    if not isinstance(model, Model):
        return rows
    noise = np.random.default_rng(seed).integers(0, 256, (*reversed(PICTURE), 3), np.uint8)
    pixels = reference_pixels(folder, Image.fromarray(noise))
    if pixels is not None:
        rows.append(difference("pixels of a {} x {} picture".format(*PICTURE), model.preprocess(noise), pixels))
    rows += _compared_ids(
        model, reference_ids(folder, SENTENCES, encoder.spec.text.context_length if encoder.spec.text else 0)
    )
    return rows


def _compared_ids(model: Model, theirs: np.ndarray | None) -> list[Difference]:
    """A row for the ids of the sentences, up to the end of each where nothing reads what follows it."""
    spec = model.encoder.spec
    if theirs is None or spec.text is None:
        return []
    ours = model.tokenize(list(SENTENCES))
    if ours.shape != theirs.shape:
        raise UserError(
            f"ids of {len(SENTENCES)} sentences are {list(ours.shape)} here and {list(theirs.shape)} in the original"
        )
    differ = ours != theirs
    if spec.text.pooling != "last" and spec.tokenization is not None:
        ended = np.cumsum(theirs == spec.tokenization.eos_id, axis=1)
        differ &= (ended == 0) | ((ended == 1) & (theirs == spec.tokenization.eos_id))
    share = float(differ.mean())
    return [
        Difference(
            f"ids of {len(SENTENCES)} sentences", float(np.abs(ours - theirs)[differ].max(initial=0)), share, share
        )
    ]


def refuse_differences(rows: list[Difference], dtype: str) -> None:
    """Raises UserError that names the first thing that is beyond `TOLERANCE`."""
    wrong = [row for row in rows if not row.worst <= TOLERANCE[dtype]]
    if wrong:
        raise UserError(
            f"the conversion is not the original: {wrong[0].what} differ by {wrong[0].worst:.2g} of the largest value "
            f"(at most {TOLERANCE[dtype]:g} is rounding in {dtype}); {len(wrong)} of {len(rows)} comparisons fail"
        )


def random_inputs(encoder: Encoder, num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Normal pixels `[n, S, S, 3]` (or sheets) and token ids `[4, T]` that end as the family's texts do: one of a word, one of half
    the context, one that just fits with room for one, one full."""
    rng = np.random.default_rng(seed)
    spec = encoder.spec
    images = random_pictures(spec.image, num_images, rng)
    if spec.text is None or spec.tokenization is None:
        return images, None
    length, vocabulary = spec.text.context_length, spec.text.vocab_size
    ends = (1, length // 2, length - 2, length - 1)
    ids = rng.integers(3, vocabulary - 2, (len(ends), length)).astype(np.int32)
    for row, end in zip(ids, ends, strict=True):
        row[end:] = spec.tokenization.pad_id
        row[end] = spec.text.eot_id if spec.text.eot_id is not None else vocabulary - 1
    return images, ids


def random_pictures(spec: ImageSpec, count: int, rng: np.random.Generator) -> np.ndarray:
    """Normal pixels: squares, or sheets of several shapes, the first of them full."""
    if spec.max_patches is None:
        return rng.standard_normal((count, *spec.picture_shape)).astype(np.float32)
    sides = [
        fitted(int(height), int(width), spec.patch_size, spec.max_patches)
        for height, width in rng.integers(100, 300, (count - 1, 2))
    ]
    sides = [(spec.patch_size, spec.patch_size * spec.max_patches), *sides][:count]
    pictures = (rng.standard_normal((*each, 3)).astype(np.float32) for each in sides)
    return np.stack([sheet_of(each, spec.patch_size, spec.max_patches) for each in pictures])


def run_ours(encoder: Encoder, images: np.ndarray, ids: np.ndarray | None) -> dict[str, np.ndarray]:
    """Our encoder's hidden states, features and logits, named as `run_reference` names them."""
    collect = {"hidden": lambda trace: trace.hidden}
    image = jax.jit(lambda params, x: image_features(params, x, encoder.spec.image, collect=collect))
    output = image(encoder.params.image, jnp.asarray(images, encoder.dtype))
    taken = output.features
    if encoder.spec.image.pooling == "none":  # what is read are the patches
        taken = output.tokens[:, encoder.spec.image.num_protected :]
    named = {"image": (np.asarray(taken), np.asarray(output.collected["hidden"]))}
    logits = None
    if ids is not None and (spec := encoder.spec.text) is not None:
        text = jax.jit(lambda params, x: text_features(params, x, spec, collect=collect))
        features, collected = text(encoder.params.text, jnp.asarray(ids))
        named["text"] = (np.asarray(features), np.asarray(collected["hidden"]))
        if encoder.params.logit_scale is not None:
            logits = np.asarray(_logits(encoder, output.features, features))
    if encoder.params.classifier is not None:
        logits = np.asarray(class_scores(encoder.params.classifier, output.features))
    return named_rows(named, logits)


@jax.jit
def _logits(encoder: Encoder, image: Float[Array, "n E"], text: Float[Array, "m E"]) -> Float[Array, "n m"]:
    """Scores of every picture with every text, with the checkpoint's temperature and offset."""
    scores = jnp.exp(jnp.asarray(encoder.params.logit_scale, jnp.float32)) * (normalize(image) @ normalize(text).T)
    bias = encoder.params.logit_bias
    return scores if bias is None else scores + jnp.asarray(bias, jnp.float32)


def difference(what: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Compares two arrays. Raises UserError for different shapes."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    if ours.shape != theirs.shape:
        raise UserError(f"{what} is {list(ours.shape)} here and {list(theirs.shape)} in the original")
    largest = float(np.abs(ours - theirs).max())
    return Difference(
        what,
        largest,
        largest / max(float(np.abs(theirs).max()), 1e-30),
        float(np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-30)),
    )
