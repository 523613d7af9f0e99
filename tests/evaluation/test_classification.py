"""The encoder's own classifier on pictures whose classes are named or numbered otherwise; errors patch by patch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.demo.bundled import bundled_model
from regcache_jax.evaluation.evaluators.classification import match_classes
from regcache_jax.evaluation.evaluators.tower import error_maps, patch_errors

NAMES = ("tench, Tinca tinca", "crane", "crane", "hen")


def test_classes_are_matched_by_name_by_a_names_first_part_or_by_number():
    assert match_classes(("Hen", "tench"), NAMES, 4).numbers.tolist() == [3, 0]
    assert match_classes(("hen", "tinca_tinca"), ("Tinca tinca", "hen"), 2).numbers.tolist() == [1, 0]
    assert match_classes(None, NAMES, 4) == (None, [])
    by_number = match_classes(("n01", "n02", "n03", "n04"), NAMES, 4)
    assert by_number.numbers is None and "by their numbers" in by_number.notes[0]
    assert match_classes(("a", "b"), None, 2) == (None, [])


@pytest.mark.parametrize(
    ("names", "message"), [(NAMES, "has no class n01, n02"), (None, "has no names of its classes")]
)
def test_classes_that_cannot_be_matched_are_refused(names, message):
    with pytest.raises(UserError, match=f"{message}, and 4 classes where the pictures have 2"):
        match_classes(("n01", "n02"), names, 4)


def test_errors_of_patches_are_relative_and_lie_where_they_are():
    known = np.ones((2 * 16, 3), np.float32)
    found = known.copy()
    found[16 + 5] *= 3.0  # row 1, column 1 of the second picture
    errors = patch_errors(found, known)
    assert errors[21] == pytest.approx(2.0) and errors.sum() == pytest.approx(2.0)
    maps = error_maps(errors, ["a", "b"], [(4, 4), (4, 4)])
    assert maps[1]["picture"] == "b" and maps[1]["errors"][1][1] == 2.0 and np.sum(maps[0]["errors"]) == 0
    assert patch_errors(known[:1], 0 * known[:1])[0] == pytest.approx(3**0.5)


@pytest.mark.slow
def test_a_quantised_tower_is_compared_patch_by_patch_and_an_encoder_without_classifier_is_refused(tmp_path, regcache):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    asked = ("evaluate", bundled_model(), "--dataset", "folder", "--data-dir", tmp_path / "pictures")
    status, _, error = regcache(
        *asked, "--task", "tower", "--scheme", "w4a8", "--activations", "token", "--json", tmp_path / "row.json"
    )
    assert status == 0, error
    row = json.loads((tmp_path / "row.json").read_text())
    metrics, maps = row["metrics"], row["quantization"]["patch_error_maps"]
    assert 0 < metrics["patch_error"] < metrics["patch_error_p99"] and metrics["patch_cosine"] < 1
    assert np.mean([each["errors"] for each in maps]) == pytest.approx(metrics["patch_error"], rel=1e-3)
    status, _, error = regcache(*asked, "--task", "classification")
    assert status == 1 and "has no classifier of its own" in error
