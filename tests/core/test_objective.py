"""What an output is and what its error is, by hand."""

import jax
import numpy as np
import pytest

import regcache_jax as rc
from regcache_jax.core.objective import checked, name_of, reads_patches
from regcache_jax.core.outputs import Answers, Outputs, feature_errors, image_errors, label_free_errors

REFERENCE = Outputs(
    np.array([[1.0, 0.0], [0.0, 2.0]], np.float32), np.array([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]], np.float32)
)  # fmt: skip
FOUND = Outputs(
    np.array([[0.0, 1.0], [0.0, 1.0]], np.float32), np.array([[[3.0, 4.0], [0.0, 5.0]], [[1.0, 0.0], [0.0, 0.0]]], np.float32)
)  # fmt: skip


def test_the_error_of_a_feature_is_its_squared_distance_over_its_squared_length():
    np.testing.assert_array_equal(feature_errors(FOUND.pooled, REFERENCE.pooled), [2.0, 0.25])
    np.testing.assert_array_equal(image_errors("pooled", FOUND, REFERENCE), [2.0, 0.25])


def test_the_error_of_patches_is_their_mean_distance_over_their_mean_length_also_where_one_is_zero():
    np.testing.assert_array_equal(image_errors("patches", FOUND, REFERENCE), [1.0, 0.5])


def test_both_is_the_mean_of_the_two():
    np.testing.assert_array_equal(image_errors("both", FOUND, REFERENCE), [1.5, 0.375])


def test_accuracy_is_one_for_a_wrong_answer():
    answers = Answers(np.array([0, 1]), np.eye(2, dtype=np.float32))
    np.testing.assert_array_equal(image_errors("accuracy", FOUND, REFERENCE, answers), [1.0, 0.0])
    np.testing.assert_array_equal(answers.of(slice(1, 2)).labels, [1])


def largest_patch(reference, found):
    return np.square(found.patches - reference.patches).sum(axis=2).max(axis=1)


def test_a_function_of_float_and_quantised_outputs_is_an_objective():
    np.testing.assert_array_equal(image_errors(largest_patch, FOUND, REFERENCE), [25.0, 1.0])
    assert reads_patches(largest_patch) and name_of(largest_patch).endswith("test_objective.largest_patch")
    with pytest.raises(rc.UserError, match="largest_norm must give one finite error an image"):
        image_errors(largest_norm, FOUND, REFERENCE)


def largest_norm(reference, found):
    return np.linalg.norm(found.pooled)


def test_the_old_word_is_the_new_one_and_others_are_refused():
    assert checked("features") == "pooled" == rc.SearchConfig(objective="features").objective
    assert not reads_patches("pooled") and not reads_patches("accuracy") and reads_patches("both")
    with pytest.raises(rc.UserError, match="objective must be one of pooled, patches, both, accuracy, or a function"):
        rc.SearchConfig(objective="labels")


def test_gradients_go_through_the_label_free_errors():
    gradient = jax.grad(lambda pooled: label_free_errors("both", FOUND._replace(pooled=pooled), REFERENCE).sum())
    np.testing.assert_allclose(gradient(jax.numpy.asarray(FOUND.pooled)), [[-1.0, 1.0], [0.0, -0.25]])


def test_where_patches_are_read_nothing_is_deleted_unless_it_is_asked_for():
    assert rc.SearchConfig().counts == (0, 3, 8) and rc.SearchConfig(objective="patches").counts == (0,)
    assert rc.SearchConfig(objective="both", delete_counts=(3,)).counts == (3,)
    assert rc.SearchConfig(objective=largest_patch).settings()["objective"].endswith("largest_patch")
