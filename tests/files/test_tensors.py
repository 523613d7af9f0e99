"""Files of arrays with a hash: what plans and calibrations are kept in."""

from __future__ import annotations

import random

import numpy as np
import pytest
import safetensors.numpy

from regcache_jax.core.errors import UserError
from regcache_jax.files.tensors import read_tensors, write_tensors

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(3)}
TEXTS = {"who": 'é"\n', "what": "2", "why": "3"}


@pytest.fixture
def file(tmp_path):
    write_tensors(tmp_path / "file", ARRAYS, TEXTS)
    return tmp_path / "file"


def test_arrays_and_texts_come_back_and_the_same_content_is_the_same_bytes(file):
    arrays, texts = read_tensors(file, "thing", set(TEXTS))
    assert texts == TEXTS and set(arrays) == {"a", "b"}
    np.testing.assert_array_equal(arrays["b"], ARRAYS["b"])
    first = file.read_bytes()
    for _ in range(8):  # the library orders texts anew every time
        write_tensors(file, ARRAYS, TEXTS)
        assert file.read_bytes() == first


def test_every_flipped_bit_is_found(file):
    whole = file.read_bytes()
    drawn = random.Random(0)
    for byte in range(len(whole)):
        changed = bytearray(whole)
        changed[byte] ^= 1 << drawn.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(UserError, match=str(file)):
            read_tensors(file, "thing", set(TEXTS))


def test_a_file_without_a_hash_is_taken_and_one_with_unknown_texts_is_not(tmp_path):
    (tmp_path / "old").write_bytes(safetensors.numpy.save(ARRAYS, {"who": "me"}))
    assert read_tensors(tmp_path / "old", "thing", {"who"})[1] == {"who": "me"}
    with pytest.raises(UserError, match=r"is not a thing: its metadata have the unknown names \['who'\]"):
        read_tensors(tmp_path / "old", "thing", set())
