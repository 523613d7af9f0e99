"""What quantising has changed, on answers that are counted by hand."""

from __future__ import annotations

import jax
import numpy as np
import small
from etils import epath

from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.evaluation.measure import Measured
from regcache_jax.models.folder import save
from regcache_jax.pipeline import changes

LABELS = np.array([0, 0, 1, 1], np.int32)
PLACES = np.array([3, 5, 6, 8], np.int32)
NAMES = ("cat", "dog")


def answers(*predictions: int) -> changes.Answers:
    return changes.Answers(np.array(predictions, np.int32), LABELS, PLACES, np.ones(4))


FLOAT, PLAIN, REGISTERS = answers(0, 0, 1, 0), answers(1, 1, 1, 0), answers(0, 0, 0, 0)


def test_answers_are_kept_with_the_cosine_of_every_picture(tmp_path):
    features = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 0.0]])
    float_ones = np.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    reference = Measured({}, float_ones, FLOAT.predictions, LABELS, PLACES)
    folder = epath.Path(tmp_path)
    changes.write_answers(folder, "w8a8", reference._replace(features=features), reference)
    found = changes.read_answers(folder, "w8a8")
    np.testing.assert_allclose(found.cosines, [1.0, 0.0, 0.5**0.5, -1.0], atol=1e-12)
    np.testing.assert_array_equal(found.places, PLACES)
    assert found.right.tolist() == [1, 1, 1, 0] and found.predictions.dtype == np.int32


def test_a_gain_is_the_difference_on_the_same_pictures():
    found = changes.gain_of(PLAIN, FLOAT)
    assert found["acc1"] == 0.5 and found["interval"][0] >= 0.0
    assert changes.gain_of(FLOAT, FLOAT) == {"acc1": 0.0, "interval": (0.0, 0.0)}


def test_only_classes_that_differ_are_told():
    assert changes.classes_of([FLOAT, PLAIN], NAMES.__getitem__) == [["cat", 2, 2, 0]]
    assert changes.classes_of([FLOAT, PLAIN, REGISTERS], NAMES.__getitem__) == [
        ["cat", 2, 2, 0, 2],
        ["dog", 2, 1, 1, 0],
    ]
    assert changes.classes_of([FLOAT, FLOAT], NAMES.__getitem__) == []


def test_flips_are_counted_and_shown_where_the_dataset_has_them_the_last_rows_first():
    data = Dataset("own", "all", 9, lambda place: Example(np.zeros((8, 8, 3), np.uint8), None, f"picture {place}"))
    found = changes.flips_of([FLOAT, PLAIN, REGISTERS], data, NAMES.__getitem__)
    assert found["counts"] == [2, 1]
    assert [each["name"] for each in found["shown"]] == ["picture 6", "picture 3", "picture 5"]
    assert found["shown"][0]["answers"] == ["dog", "dog", "cat"] and found["shown"][0]["class"] == "dog"


def test_bytes_are_those_of_the_arrays(tmp_path):
    encoder = small.encoder()
    folder = save(tmp_path / "model", encoder)
    assert changes.parameter_bytes(folder) == sum(leaf.nbytes for leaf in jax.tree.leaves(encoder.params))
