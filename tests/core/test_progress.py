"""What hears how far a call is: every verb of Python tells the same way."""

from __future__ import annotations

import numpy as np
import pytest
import small

import regcache_jax as rc
from regcache_jax.core.progress import heard


def test_rows_tell_how_many_pictures_have_passed_over_all_passes():
    told: list[tuple[int, int | None]] = []
    rows = heard([[1, 2], [3]], lambda done, total=None, note="": told.append((done, total)), 6)
    assert [list(row) for _ in range(2) for row in rows] == [[1, 2], [3]] * 2
    assert told == [(2, 6), (3, 6), (5, 6), (6, 6)] and len(rows) == 2 and rows[1] == [3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "last"),
    [
        (lambda encoder, images, **told: rc.inspect(encoder, images, batch_size=2, **told), (5, 5)),
        (lambda encoder, images, **told: rc.quantize(encoder, images, "w8a8", **told), (5, 5)),
        (
            lambda encoder, images, **told: rc.quantize(encoder, images, {"method": "smoothquant+gptq"}, **told),
            (10, 10),
        ),
        (lambda encoder, images, **told: rc.quantize(encoder, images, {"method": "erq"}, **told), (15, 15)),
    ],
    ids=["inspect", "quantize", "a method that prepares", "one that goes through all blocks"],
)
def test_a_call_tells_of_all_its_pictures(call, last):
    told: list[tuple[int, int | None]] = []
    call(
        small.encoder(),
        np.asarray(small.images(5)),
        progress=lambda done, total=None, note="": told.append((done, total)),
    )
    assert told[-1] == last and told == sorted(told)
