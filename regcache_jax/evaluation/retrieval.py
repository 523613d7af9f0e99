"""Zero-shot retrieval between pictures and texts: recall@k in both directions, as CLIP_benchmark defines it.

Every text describes one picture, a picture may have several texts. A text finds its picture when that is among the k nearest; a
picture finds its texts when any of them is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from regcache_jax.core.errors import UserError


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
    return np.concatenate([np.argmax(images[first : first + rows] @ texts.T, axis=1) for first in parts]).astype(
        np.int32
    )


def _best_ranks(
    queries: Float[np.ndarray, "q E"],
    candidates: Float[np.ndarray, "c E"],
    matches: Sequence[Int[np.ndarray, "_"]],
    rows: int,
) -> Int[np.ndarray, "q"]:
    """For every query the rank, from 0, of its best match: how many candidates score more, or as much and come before it."""
    ranks = np.empty(len(queries), np.int64)
    for first in range(0, len(queries), rows):
        for row, scores in enumerate(queries[first : first + rows] @ candidates.T, start=first):
            best = min(matches[row], key=lambda match: (-scores[match], match))
            ranks[row] = np.sum(scores > scores[best]) + np.sum(scores[:best] == scores[best])
    return ranks
