"""The recipe of the bundled encoder: the drawings it is trained on, and how they are augmented."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.demo.recipe.augment import STEPS, batches, make_batch, over, random_view
from regcache_jax.demo.recipe.concepts import least_confused, most_alike
from regcache_jax.demo.recipe.drawings import VENDORS, hold_out, read_drawings


def write_packages(root, names, missing=()):
    """A data folder with the layout that npm's packages have; concept `i` is a square of its own grey."""
    for vendor in VENDORS:
        (root / vendor.folder).mkdir(parents=True)
    new, old = [], []
    for number, name in enumerate(names):
        code = f"1f40{number}-fe0f"
        entry = {"name": name, "short_name": "x", "category": "Animals & Nature", "subcategory": "animal-bug"}
        new.append({**entry, "image": f"{code}.png"})
        old.append({"unified": f"1F40{number}", "image": f"old{number}.png"})
        square = Image.new("RGBA", (72, 72), (20 * number + 10,) * 3 + (255,))
        for path in (
            f"google/package/img/google/64/{code}.png",
            f"google3/package/img/google/64/old{number}.png",
            f"emojione/package/assets/png/1f40{number}.png",
        ):
            if path not in missing:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                square.save(root / path)
        colour = "#{0:02x}{0:02x}{0:02x}".format(20 * number + 10)
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="8" height="8" fill="{colour}"/></svg>'
        files = [f"fluent/package/assets/1f40{number}.svg", f"fmodern/package/assets/{code}.svg"]
        files += [f"fx/svgs/FirefoxEmoji/u1F40{number}-thing.svg"] if number % 2 else []
        for path in files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(svg)
    new.append({**new[0], "name": "A SIGN", "subcategory": "zodiac"})
    (root / "google/package/emoji.json").write_text(json.dumps(new))
    (root / "google3/package/emoji.json").write_text(json.dumps(old))


def test_drawings_are_read_from_every_vendors_own_layout(tmp_path):
    write_packages(tmp_path, ["ANT", "bee", "cricket"], missing=("emojione/package/assets/png/1f402.png",))
    found = read_drawings(tmp_path)
    assert found.names == ("ant", "bee")  # EmojiOne lacks the cricket, and a sign is no drawing
    assert found.vendors == tuple(vendor.name for vendor in VENDORS)
    np.testing.assert_array_equal(found.trains[:, -1], [False, True])  # FxEmoji may lack concepts
    grey = found.rgba[..., 32, 32, 0]
    np.testing.assert_array_equal(grey[:, :-1], np.broadcast_to([[10], [30]], (2, 5)))
    assert found.rgba[0, -1].max() == 0
    assert read_drawings(tmp_path, ["bee", "cricket"]).names == ("bee",)


def test_missing_vendors_are_listed_with_where_to_get_them(tmp_path):
    (tmp_path / "google").mkdir()
    with pytest.raises(UserError, match=r"emojione \(unpack npm emojione 2\.2\.7\).*mozilla/fxemoji"):
        read_drawings(tmp_path)


def test_a_folder_that_is_not_as_npm_unpacks_it_is_told_so(tmp_path):
    for vendor in VENDORS:
        (tmp_path / vendor.folder).mkdir()
    with pytest.raises(UserError, match="does not hold the packages"):
        read_drawings(tmp_path)


def test_the_vendor_of_the_evaluation_is_not_in_the_table():
    assert not any("twitter" in vendor.source or "twemoji" in vendor.name for vendor in VENDORS)


def test_forty_drawings_of_one_vendor_are_held_out_and_always_the_same_ones(drawings):
    first, second = (hold_out(drawings, vendor="fluent") for _ in range(2))
    assert (~first.trains).sum(axis=0).tolist() == [0, 40]
    np.testing.assert_array_equal(first.trains, second.trains)
    assert hold_out(drawings, vendor="fx") is drawings  # not among the bundled ones


def test_vendors_agree_about_real_concepts_and_not_about_shuffled_ones(drawings):
    mixed = drawings.rgba.copy()
    mixed[100:, 1] = np.roll(mixed[100:, 1], 1, axis=0)  # from concept 100 on, Fluent draws the neighbour
    kept = most_alike(dataclasses.replace(drawings, rgba=mixed), 60)
    assert (kept < 100).mean() > 0.85  # chance is 0.49


def test_the_most_confused_concept_goes_first():
    confusion = np.array([[0.9, 0.1, 0.0], [0.3, 0.5, 0.2], [0.0, 0.3, 0.7]], np.float32)
    np.testing.assert_array_equal(least_confused(confusion, 2), [0, 2])  # 1 has 0.5 in its row and 0.4 in its column
    np.testing.assert_array_equal(least_confused(confusion, 3), [0, 1, 2])


# -------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.change.__name__)
def test_every_step_of_augmentation_gives_a_drawing(step, few):
    first, second = few.rgba[3].astype(np.float32) / 255
    for seed in range(6):
        changed = step.change(first, second, np.random.default_rng(seed))
        assert changed.shape == first.shape and changed.dtype == np.float32
        assert changed.min() >= 0 and changed.max() <= 1


def test_augmentation_changes_most_pixels_and_stays_in_range(few):
    views = [random_view(*few.rgba[0].astype(np.float32) / 255, np.random.default_rng(seed)) for seed in range(8)]
    assert all(view.dtype == np.float32 and view.min() >= 0 and view.max() <= 1 for view in views)
    assert np.abs(views[0] - views[1]).mean() > 0.02


def test_a_drawing_over_a_colour_mixes_by_alpha():
    drawing = np.full((1, 1, 4), (1.0, 0.0, 0.5, 0.25), np.float32)
    np.testing.assert_allclose(over(drawing, np.ones(3, np.float32))[0, 0], (1.0, 0.75, 0.875))


def test_a_batch_is_a_function_of_its_number_and_the_thread_gives_the_same(few):
    threaded = list(batches(few, 3, seed=5, steps=range(2, 9)))
    assert len(threaded) == 7
    for step, batch in enumerate(threaded, start=2):
        again = make_batch(few, 3, seed=5, step=step)
        np.testing.assert_array_equal(batch.images, again.images)
        np.testing.assert_array_equal(batch.labels, again.labels)


def test_drawings_that_are_held_out_never_train(few):
    marked = few.rgba.copy()
    marked[:, 1] = 255  # Fluent is a white square, which no Noto drawing is
    held = dataclasses.replace(few, rgba=marked, trains=np.broadcast_to([True, False], (len(few.names), 2)).copy())
    plain = dataclasses.replace(held, rgba=np.repeat(held.rgba[:, :1], 2, axis=1))
    np.testing.assert_array_equal(make_batch(held, 8, 0, 0).images, make_batch(plain, 8, 0, 0).images)
