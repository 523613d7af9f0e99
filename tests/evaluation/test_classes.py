"""Classes of two folders joined by name; what is counted is what stands as examples; tasks that train find their own test part."""

from __future__ import annotations

import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.evaluation.classes import join_classes
from regcache_jax.evaluation.job import Job
from regcache_jax.evaluation.rows import Rows
from regcache_jax.evaluation.tasks import TASKS


def labelled(split, labels, names):
    """A dataset of known labels, and rows whose features say the class's name."""
    dataset = Dataset("pets", split, len(labels), lambda index: Example(None, labels[index], str(index)), names)
    own = [("none" if label < 0 else names[label] if names else str(label)) for label in labels]
    places = {name: number for number, name in enumerate(["ape", "cat", "dog", "eel", "fox", "none", "0", "1", "2"])}
    features = np.eye(len(places), dtype=np.float32)[[places[name] for name in own]]
    return dataset, Rows(features, np.array(labels, np.int32), np.arange(len(labels)), [])


ENCODER = small.encoder()
TRAINING = labelled("train", [0, 0, 1, 1, 2, 2], ("ape", "cat", "dog"))


def run(task, training, tested, reference=None):
    rows = {id(training[0]): training[1], id(tested[0]): tested[1]}
    job = Job(None, ENCODER, lambda step, data: rows[id(data)], tested[0], bank=training[0], reference=reference)
    job = job._replace(options=job.options._replace(neighbours=2))
    return TASKS[task].run(job)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["knn", "linear_probe"])
def test_a_class_that_is_missing_in_the_test_moves_no_other(task):
    found = run(task, TRAINING, labelled("test", [0, 1, 1], ("cat", "dog")))
    assert found.measured.metrics["acc1"] == 1.0 and found.examples == 3 and found.notes == []


def test_a_class_without_training_pictures_is_never_right_and_that_is_said():
    found = run("knn", TRAINING, labelled("test", [0, 1, 1, -1], ("cat", "fox")))
    assert found.measured.metrics["acc1"] == pytest.approx(1 / 3) and found.examples == 3
    assert found.notes == [
        "not counted, as without a class: 1 of 4 pictures",
        "no training picture is of fox: none of their pictures can be right",
    ]


def test_classes_without_names_are_joined_by_number_and_never_to_names():
    plain = labelled("test", [2, 0], None)
    joined = join_classes(labelled("train", [0, 0, 2], None)[0], labelled("train", [0, 0, 2], None)[1], *plain)
    assert joined.tested.tolist() == [1, 0] and joined.num_trained == 2
    with pytest.raises(UserError, match="train of pets names its classes and test of pets does not"):
        run("knn", TRAINING, plain)
    with pytest.raises(UserError, match="no class in common: eel and ape, cat, dog"):
        run("knn", TRAINING, labelled("test", [0], ("eel",)))


def test_pictures_without_any_class_are_refused():
    with pytest.raises(UserError, match="no picture has a class"):
        run("knn", TRAINING, labelled("test", [-1, -1], None))
    with pytest.raises(UserError, match="labelled training pictures"):
        run("linear_probe", labelled("train", [-1] * 6, None), labelled("test", [0], ("cat",)))


def test_features_that_are_not_numbers_are_right_nowhere():
    tested = labelled("test", [0, 1, 2], ("ape", "cat", "dog"))
    tested = tested[0], tested[1]._replace(features=np.full_like(tested[1].features, np.nan))
    for task in ("knn", "linear_probe"):
        assert run(task, TRAINING, tested).measured.metrics["acc1"] == 0.0
