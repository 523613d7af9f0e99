from __future__ import annotations

import sys

import numpy as np
import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.data.batches import Missing, Share, batches
from regcache_jax.data.dataset import Dataset, Example

ALONE = Share(0, 1)


def numbers(length: int) -> Dataset:
    """Pictures that hold their own number; every seventh cannot be read."""

    def get(index: int) -> Example:
        if index % 7 == 6:
            raise UserError(f"{index} is broken")
        return Example(index, index, str(index))

    return Dataset("numbers", "all", length, get)


@pytest.mark.parametrize(("threads", "batch_size"), [(1, 5), (2, 16), (2, 64), (16, 5)])
def test_batches_are_the_same_however_many_pictures_a_thread_takes_at_a_time(monkeypatch, threads, batch_size):
    monkeypatch.setattr(sys.modules[batches.__module__], "threads", lambda: threads)
    missing = Missing(100)
    made = list(
        batches(numbers(100), lambda n: np.full((2, 2, 3), n, np.float32), batch_size, share=ALONE, missing=missing)
    )
    assert len(made) == -(-100 // batch_size) and all(len(batch.image) == batch_size for batch in made)
    places = np.concatenate([batch.place[batch.mask] for batch in made])
    assert places.tolist() == [place for place in range(100) if place % 7 != 6]
    assert np.array_equal(np.concatenate([batch.image[batch.mask] for batch in made])[:, 1, 1, 2], places)
    assert missing.messages == [f"{place} is broken" for place in range(100) if place % 7 == 6]
