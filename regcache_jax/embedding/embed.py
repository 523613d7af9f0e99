"""Embeds a source of any size into a set of partitions, as one of any number of processes that know nothing of one another.

Every process claims a free partition, embeds it on its own devices, writes it whole and claims the next, until all are there, whoever
made them. Batches of consecutive partitions follow one another without a gap. Killed anywhere, and started again with more or fewer
processes, a set ends with the same files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Tap
from regcache_jax.data.parts import Part
from regcache_jax.embedding.claims import sweep
from regcache_jax.embedding.hand import Hand, Making, Running
from regcache_jax.embedding.layout import Described, Layout, describe
from regcache_jax.embedding.options import Features, SetOptions
from regcache_jax.embedding.partition import EncodeTexts
from regcache_jax.embedding.tally import Tally
from regcache_jax.encoders.encoder import Encoder, encode, encode_image
from regcache_jax.encoders.identity import image_identity
from regcache_jax.encoders.taps import at_tap, encode_patches
from regcache_jax.evaluation.loop import encoding, round_up
from regcache_jax.evaluation.watch import Watch
from regcache_jax.evaluation.zero_shot import encode_ids, text_identity
from regcache_jax.files.identity import fingerprint
from regcache_jax.models.folder import Model

POLL = 1.0
"""Seconds between two looks for a partition that another process has given up, once none is free."""


class Done(NamedTuple):
    """What this process has done: pictures with rows, and unreadable ones; and how many partitions the set has."""

    pictures: int
    unreadable: int
    partitions: int


def class_token(encoder: Encoder, images: Float[Array, "B Y X 3"]) -> Float[Array, "B D"]:
    """The class token after the final norm, in float32."""
    return encode(encoder, images).tokens[:, 0].astype(jnp.float32)


Encode = Callable[[Encoder, Any], Float[Array, "B *R"]]
ENCODE: dict[Features, Encode] = {
    "pooled": encode_image,
    "class": class_token,
    "patches": encode_patches,
}


def encode_for(features: Features, encoder: Encoder) -> Encode:
    """What gives such features. Raises UserError where an encoder has none."""
    if features == "class" and not encoder.spec.image.class_token:
        raise UserError(f"{encoder.spec.name} has no class token; --features pooled or patches")
    return ENCODE[features]


def shape_of_row(encode: Encode, encoder: Encoder) -> tuple[int, ...]:
    """The shape of what it gives of one picture."""
    picture = jax.ShapeDtypeStruct((1, *encoder.spec.image.picture_shape), np.float32)
    return jax.eval_shape(encode, encoder, picture).shape[1:]


def embed_set(
    model: Model, parts: Sequence[Part], folder: epath.PathLike, options: SetOptions, running: Running | None = None
) -> Done:
    """Works on the set in `folder` until every part has its partition.

    Raises UserError for a set that was begun with something else, for an encoder that has not what is asked for, and for more unreadable
    pictures in a partition than may be."""
    if options.block is not None:
        model = dataclasses.replace(model, encoder=at_tap(model.encoder, Tap(options.block, normed=False)))
    running = running or Running()
    step = encode_for(options.features, model.encoder)
    if options.captions and (model.encoder.spec.text is None or options.features != "pooled"):
        raise UserError("--captions needs a text tower, and --features pooled")
    encode_texts = _text_encoder(model) if options.captions else None
    layout = Layout(folder, len(parts))
    layout.folder.mkdir(parents=True, exist_ok=True)
    size = round_up(running.batch_size)
    described = _described(model, parts, options, size, step)
    belongs_to = describe(layout.folder, dict(described))
    done = len(layout.done())
    running.events(
        "start", folder=str(layout.folder), set=belongs_to, partitions=len(parts), done=done, batch_size=size
    )
    watch = Watch()
    tally = Tally(layout, parts, running.moved, watch)
    making = Making(described, belongs_to, options.allow_unreadable, size, encode_texts)
    with contextlib.closing(Hand(model, parts, layout, making, running, tally)) as hand:
        while len(layout.done()) < len(parts):
            if not hand.embed_free(encoding(step), watch):
                time.sleep(POLL)
                tally.show()
    sweep(layout)
    seconds = round(time.perf_counter() - watch.began, 3)
    running.events(
        "end", pictures=tally.pictures, unreadable=tally.unreadable, seconds=seconds, waited=round(watch.waited, 3)
    )
    return Done(tally.pictures, tally.unreadable, len(parts))


def _text_encoder(model: Model) -> EncodeTexts:
    """From texts to their features. Raises UserError where there is no tokenizer."""
    tokenize = model.tokenize
    return lambda texts: encode_ids(model.encoder, tokenize(texts))


def _described(model: Model, parts: Sequence[Part], options: SetOptions, size: int, step: Encode) -> Described:
    """What `set.json` says: layout, the shape of a row, and what the rows depend on."""
    encoder, spec = model.encoder, model.encoder.spec
    made_from = {
        "model": fingerprint(image_identity(encoder)),
        "preprocessing": fingerprint(spec.to_json()["preprocessing"]),
        "source": fingerprint([part.identity for part in parts]),
        "batch size": str(size),
        "kind of device": jax.default_backend(),
        "version of regcache-jax": metadata.version("regcache-jax"),
        "version of JAX": metadata.version("jax"),
    }
    if options.captions:
        made_from["text tower"] = fingerprint(text_identity(encoder))
    return Described(
        format=options.format, dtype=options.dtype, features=options.features, captions=options.captions,
        shape=list(shape_of_row(step, encoder)), partitions=len(parts), made_from=made_from, sha256="",
    )  # fmt: skip
