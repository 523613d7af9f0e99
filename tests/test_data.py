"""Datasets and batches: the bundled pictures, folders, TFDS, padding."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from regcache_jax.data import batches, emoji, load_images, open_dataset
from regcache_jax.encoders.preprocess import open_picture, preprocess
from regcache_jax.encoders.spec import HALF, Preprocessing
from regcache_jax.errors import UserError

SMALL = Preprocessing(16, "squash", "bicubic", 16, HALF, HALF)


def to_small(image):
    return preprocess(image, SMALL)


def test_the_bundled_test_split_has_four_renderings_of_every_concept():
    dataset = open_dataset("emoji", split="test")
    assert len(dataset) == 816
    assert len(dataset.classnames) == 204
    counts = np.bincount([dataset[index].label for index in range(0, 816, 4)], minlength=204)
    assert (counts == 1).all()


def test_a_rendering_on_white_is_the_drawing_composited_by_pillow():
    drawing = emoji._drawing("twemoji", 3)
    white = Image.new("RGBA", drawing.size, (255, 255, 255, 255))
    expected = np.asarray(Image.alpha_composite(white, drawing).convert("RGB"), int)
    difference = np.abs(emoji.render("twemoji", 3, 0).astype(int) - expected)
    assert difference.max() <= 1  # Pillow composites in integers, the rendering in float


def test_the_train_split_mixes_concepts_and_never_holds_a_test_vendor():
    listed = emoji.pictures("train")
    assert {vendor for vendor, _, _ in listed} == {"noto", "fluent"}
    assert len({concept for _, concept, _ in listed[:204]}) > 100
    assert len(listed) == len(set(listed)) == 1632


def test_the_last_batch_is_padded_and_masked_and_nothing_is_lost():
    dataset = open_dataset("emoji", split="test", limit=21)
    parts = list(batches(dataset, to_small, 8))
    assert [part.image.shape for part in parts] == [(8, 16, 16, 3)] * 3
    assert [int(part.mask.sum()) for part in parts] == [8, 8, 5]
    joined = np.concatenate([part.image[part.mask] for part in parts])
    np.testing.assert_array_equal(joined, load_images(dataset, to_small))
    assert (parts[-1].image[5:] == 0).all() and (parts[-1].label[5:] == -1).all()


def test_a_folder_of_class_folders_is_read_in_sorted_order(tmp_path):
    for classname in ("zebra", "ape"):
        (tmp_path / classname).mkdir()
        for name in ("b", "a"):
            Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / classname / f"{name}.png")
    dataset = open_dataset("folder", data_dir=str(tmp_path))
    assert dataset.classnames == ("ape", "zebra")
    assert [(dataset[i].name, dataset[i].label) for i in range(4)] == [
        ("ape/a.png", 0), ("ape/b.png", 0), ("zebra/a.png", 1), ("zebra/b.png", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "emojis"}, "did you mean emoji"),
        ({"name": "emoji", "split": "validation"}, "has the splits train, test"),
        ({"name": "folder"}, "needs --data-dir"),
        ({"name": "folder", "data_dir": "nowhere"}, "there is no folder nowhere"),
        ({"name": "emoji", "limit": 0}, "at least 1"),
    ],
)
def test_a_wrong_request_gets_one_message_with_what_would_be_right(arguments, message):
    with pytest.raises(UserError, match=message):
        open_dataset(**arguments)


def test_an_empty_folder_and_an_unreadable_picture_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no pictures"):
        open_dataset("folder", data_dir=str(tmp_path))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing more")
    dataset = open_dataset("folder", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"broken\.png"):
        list(batches(dataset, to_small, 4))


def test_pictures_of_every_mode_become_rgb(tmp_path):
    grey16 = tmp_path / "grey16.png"
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)).save(grey16)
    assert np.asarray(open_picture(grey16)).max() == 255
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(open_picture(clear)).min() == 255  # transparent is white
    for mode in ("L", "P", "CMYK", "1", "LA"):
        assert open_picture(Image.new(mode, (5, 4))).mode == "RGB"
    rotated = tmp_path / "rotated.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 4)).save(rotated, exif=exif)
    assert open_picture(rotated).size == (4, 10)


@pytest.mark.slow
def test_the_tfds_builder_gives_the_same_pictures_without_tensorflow(tmp_path):
    builder = emoji.RegcacheEmoji(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    prepared = open_dataset("regcache_emoji", data_dir=str(tmp_path), split="test")
    direct = open_dataset("emoji", split="test")
    assert len(prepared) == len(direct) == 816
    assert tuple(prepared.classnames) == direct.classnames
    same = {direct[index].image.tobytes(): direct[index].label for index in range(816)}
    for index in (0, 400, 815):  # TFDS shuffles by its own keys
        assert same[prepared[index].image.tobytes()] == prepared[index].label
