"""Embeds a source of any size into a set of partitions, as one of any number of processes that know nothing of one another.

Every process claims a free partition, embeds it on its own devices, writes it whole and claims the next, until all are there, whoever
made them. Batches of consecutive partitions follow one another without a gap. Killed anywhere, and started again with more or fewer
processes, a set ends with the same files.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Tap
from regcache_jax.data.batches import Batch, Share, batches
from regcache_jax.data.parts import Part
from regcache_jax.embedding.claims import free
from regcache_jax.embedding.layout import Described, Layout, describe
from regcache_jax.embedding.options import Features, SetOptions
from regcache_jax.embedding.partition import EncodeTexts, Partition
from regcache_jax.embedding.tally import Tally
from regcache_jax.encoders.encoder import Encoder, encode, encode_image
from regcache_jax.encoders.identity import image_identity
from regcache_jax.encoders.taps import at_tap, encode_patches
from regcache_jax.evaluation.loop import Parallel, each_batch, encoding, round_up
from regcache_jax.evaluation.rows import check_rows
from regcache_jax.evaluation.watch import Watch
from regcache_jax.evaluation.zero_shot import encode_ids, text_identity
from regcache_jax.files.events import Events, nobody
from regcache_jax.files.identity import fingerprint
from regcache_jax.models.folder import Model

POLL = 1.0
"""Seconds between two looks for a partition that another process has given up, once none is free."""


class Running(NamedTuple):
    """How one process works. `batch_size`: pictures a step; `workers`: processes that decode (0: threads). `tell` hears of what was left
    out, `moved` of pictures done, of how many, with a note, `events` of the start, of each partition and of the end."""

    batch_size: int = 32
    parallel: Parallel = "jit"
    workers: int = 0
    tell: Callable[[str], None] = lambda line: None
    moved: Callable[[int, int, str], None] = lambda done, total, note: None
    events: Events = nobody


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
    spec, running = model.encoder.spec, running or Running()
    step = encode_for(options.features, model.encoder)
    if options.captions and (spec.text is None or options.features != "pooled"):
        raise UserError("--captions needs a text tower, and --features pooled")
    encode_texts = _text_encoder(model) if options.captions else None
    layout = Layout(folder, len(parts))
    layout.folder.mkdir(parents=True, exist_ok=True)
    size = round_up(running.batch_size)
    described = _described(model, parts, options, size, step)
    belongs_to = describe(layout.folder, dict(described))
    running.events(
        "start",
        folder=str(layout.folder),
        set=belongs_to,
        partitions=len(parts),
        done=len(layout.done()),
        batch_size=size,
    )
    watch = Watch()
    tally = Tally(layout, parts, running.moved, watch)
    pending: collections.deque[Partition] = collections.deque()

    def work() -> Iterator[Batch]:
        """The batches of one free partition after the other."""
        for claim in free(layout, own := {each.claim.number for each in pending}):
            with contextlib.ExitStack() as failed:
                failed.push(claim.let_go)
                dataset = parts[claim.number].open()
                partition = Partition(claim, dataset, described, options.allow_unreadable, size)
                failed.pop_all()
            for note in dataset.notes:
                running.tell(note)
            tally.opened(claim.number, len(dataset))
            own.add(claim.number)
            pending.append(partition)
            yield from batches(
                dataset, model.preprocess, size,
                indices=partition.indices, share=Share(0, 1), missing=partition.missing, workers=running.workers,
            )  # fmt: skip

    def write() -> None:
        """Writes the partitions whose last batch has come."""
        while pending and not pending[0].left:
            partition = pending.popleft()
            written = partition.write(layout, belongs_to, encode_texts)
            tally.finished(partition.claim.number, written["unreadable"])
            seconds = round(time.monotonic() - partition.began, 3)
            running.events("partition", number=partition.claim.number, seconds=seconds, **written)

    try:
        while len(layout.done()) < len(parts):
            rows = each_batch(
                encoding(step), model.encoder, work(),
                parallel=running.parallel, micro_batch="auto", watch=watch, alone=True,
            )  # fmt: skip
            worked = False
            for output in rows:
                worked = True
                write()
                check_rows(model.encoder, output, pending[0].dataset, spec.preprocessing)
                pending[0].add(output["features"], output["place"])
                tally.add(pending[0].claim.number, len(output["place"]))
                write()
            write()
            if not worked:
                time.sleep(POLL)
                tally.show()
    finally:
        for partition in pending:
            partition.give_up()
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
