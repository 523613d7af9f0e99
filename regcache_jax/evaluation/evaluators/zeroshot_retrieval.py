"""Zero-shot retrieval between pictures and texts: recall@k in both directions, as CLIP_benchmark defines it.

Every text describes one picture, a picture may have several texts. A text finds its picture when that is among the k nearest; a
picture finds its texts when any of them is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.evaluation.embedding import embed_texts
from regcache_jax.evaluation.job import Found, Job
from regcache_jax.evaluation.measure import Measured, compared
from regcache_jax.evaluation.metrics import predictions


def run(job: Job) -> Found:
    """Recall among the pictures that have captions, and those. Raises UserError where no picture has one."""
    captions = [job.data.captions(place) for place in range(len(job.data))]
    described = [place for place, texts in enumerate(captions) if texts]
    if not described:
        raise UserError(f"no picture of {job.data.name} has a caption; --captions FILE gives them (JSON)")
    rows = job.encode(encode_image, job.data.chosen(described))
    own = [captions[described[int(place)]] for place in rows.places]  # of the pictures that could be read
    texts = embed_texts(job.model, [text for each in own for text in each], cache=job.cache)
    picture = np.repeat(np.arange(len(own)), [len(each) for each in own])
    metrics = retrieval_metrics(rows.features, texts, picture, recall_at=job.options.recall_at)
    measured = Measured(metrics, rows.features, nearest_texts(rows.features, texts))
    left_out = len(captions) - len(described)
    notes = [f"left out, as without a caption: {left_out:,} of {counted(len(captions), 'picture')}"] if left_out else []
    return Found(compared(measured, job.reference), len(own), rows.missing, notes)


def retrieval_metrics(
    images: Float[np.ndarray, "n E"],
    texts: Float[np.ndarray, "t E"],
    picture: Int[np.ndarray, "t"],
    *,
    recall_at: Sequence[int] = (1, 5, 10),
    rows: int = 1024,
) -> dict[str, float]:
    """`image_retrieval_recall@k` (over the texts) and `text_retrieval_recall@k` (over the pictures that have a text), fractions.

    `images` and `texts` have unit length; `picture` says which picture each text describes. `rows`: queries compared at a
    time. Ties go to the earlier candidate. Raises UserError for an empty side and for a text of a picture that is not there."""
    if not len(images) or not len(texts):
        raise UserError(f"retrieval needs pictures and texts, got {len(images)} pictures and {len(texts)} texts")
    if len(picture) != len(texts) or picture.min() < 0 or picture.max() >= len(images):
        raise UserError(f"every text needs the number of its picture, 0..{len(images) - 1}")
    described = np.unique(picture)
    # one matching picture a text; several matching texts a picture, of which the best ranked counts
    image_ranks = _best_ranks(texts, images, [picture[i : i + 1] for i in range(len(texts))], rows)
    by_picture = np.argsort(picture, kind="stable")
    starts = np.searchsorted(picture[by_picture], described)
    text_ranks = _best_ranks(images[described], texts, np.split(by_picture, starts[1:]), rows)
    return {
        f"{side}_retrieval_recall@{k}": float(np.mean(ranks < k))
        for side, ranks in (("image", image_ranks), ("text", text_ranks))
        for k in recall_at
    }


def nearest_texts(
    images: Float[np.ndarray, "n E"], texts: Float[np.ndarray, "t E"], rows: int = 1024
) -> Int[np.ndarray, "n"]:
    """The text that is nearest to each picture (ties: the earlier): what int8 and float are compared by."""
    parts = range(0, len(images), rows)
    return np.concatenate([predictions(images[first : first + rows] @ texts.T) for first in parts])


def _best_ranks(
    queries: Float[np.ndarray, "q E"],
    candidates: Float[np.ndarray, "c E"],
    matches: Sequence[Int[np.ndarray, "_"]],
    rows: int,
) -> Int[np.ndarray, "q"]:
    """For every query the rank, from 0, of its best match: how many candidates are not behind it. Behind are those that score less,
    or as much and come later; so what is not a number costs ranks."""
    ranks = np.empty(len(queries), np.int64)
    for first in range(0, len(queries), rows):
        for row, scores in enumerate(queries[first : first + rows] @ candidates.T, start=first):
            known = [match for match in matches[row] if not np.isnan(scores[match])]
            if not known:
                ranks[row] = len(scores)
                continue
            best = min(known, key=lambda match: (-scores[match], match))
            behind = np.sum(scores < scores[best]) + np.sum(scores[best:] == scores[best])
            ranks[row] = len(scores) - behind
    return ranks
