"""Folders of pictures: what a person sees there, counted and said; classes by name; captions in UTF-8."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.data import open_dataset
from regcache_jax.data.annotations import with_captions
from regcache_jax.data.prompts import class_names
from regcache_jax.data.splits import has_splits, held_out


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)


def names(dataset):
    return [dataset[place].name for place in range(len(dataset))]


def test_links_are_followed_to_folders_and_to_pictures(tmp_path):
    put(tmp_path / "store", "cat/a.png", "dog/a.png")
    put(tmp_path / "mine", "cat/b.png")
    (tmp_path / "mine" / "dog").symlink_to(tmp_path / "store" / "dog")
    (tmp_path / "mine" / "cat" / "linked.png").symlink_to(tmp_path / "store" / "cat" / "a.png")
    dataset = open_dataset("folder", str(tmp_path / "mine"))
    assert dataset.classnames == ("cat", "dog") and names(dataset) == ["cat/b.png", "cat/linked.png", "dog/a.png"]
    assert dataset.notes == ()


def test_a_link_to_a_folder_that_it_lies_in_is_refused(tmp_path):
    put(tmp_path, "cat/a.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"cat/again is a link to a folder that it lies in"):
        open_dataset("folder", str(tmp_path))


def test_hidden_entries_are_left_out_and_what_is_no_picture_is_counted_and_said(tmp_path):
    put(tmp_path, "cat/a.png", "cat/._a.png", ".cache/b.png", "loose.png")
    for name in ("cat/notes.txt", "cat/a.txt", "cat/list.json", "empty/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "cat" / "dead.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    dataset = open_dataset("folder", str(tmp_path))
    assert names(dataset) == ["cat/a.png", "loose.png"] and dataset.classnames == ("cat",)
    counted, empty, loose = dataset.notes
    assert "not read as pictures: 5 entries" in counted and "links that lead nowhere 1" in counted
    assert "devices and pipes 1" in counted and ".txt 1" in counted  # a.txt holds a picture's captions
    assert empty.endswith("no class without a picture: empty") and "without a class: 1 picture" in loose


def test_folders_of_numbers_are_classes_in_the_order_of_the_numbers(tmp_path):
    put(tmp_path, *(f"{number}/a.png" for number in range(11)))
    dataset = open_dataset("folder", str(tmp_path))
    assert dataset.classnames == tuple(str(number) for number in range(11))
    assert {int(dataset[place].name.split("/")[0]): dataset[place].label for place in range(11)} == {
        n: n for n in range(11)
    }


@pytest.mark.parametrize(
    ("encoding", "texts"),
    [("utf-8", ("a café",)), ("utf-8-sig", ("a café",)), ("cp1252", None), ("utf-16", None)],
)
def test_captions_are_utf_8_with_a_mark_or_without_and_read_only_where_they_are_asked_for(tmp_path, encoding, texts):
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("a café\r\n\n".encode(encoding))
    dataset = open_dataset("folder", str(tmp_path))
    assert dataset[0].name == "a.png"
    if texts is None:
        with pytest.raises(UserError, match=r"a\.txt is not UTF-8 text: byte 0x"):
            dataset.captions(0)
    else:
        assert dataset.captions(0) == texts


def test_a_caption_that_two_pictures_might_mean_is_refused(tmp_path):
    put(tmp_path / "pictures", "cat/1.png", "dog/1.png")
    (tmp_path / "captions.json").write_text(json.dumps({"1.png": "an animal"}))
    dataset = with_captions(open_dataset("folder", str(tmp_path / "pictures")), tmp_path / "captions.json")
    assert dataset.captions(0) == ("an animal",)
    with pytest.raises(UserError, match=r"1\.png may be cat/1\.png or dog/1\.png"):
        dataset.captions(1)


def test_folders_of_splits_are_no_classes(tmp_path):
    put(tmp_path, "train/cat/a.png", "val/cat/a.png")
    with pytest.raises(UserError, match="holds train, val, which are no classes; choose one with --split"):
        class_names(open_dataset("folder", str(tmp_path)))
    assert has_splits(str(tmp_path), "test", "train") and not has_splits(str(tmp_path / "train"), "test", "train")


def test_of_every_class_one_picture_in_five_is_held_out_and_that_is_said(tmp_path):
    put(
        tmp_path,
        *(f"{name}/{number}.png" for name, count in (("cat", 10), ("dog", 2), ("one", 1)) for number in range(count)),
    )
    training, tested = held_out(open_dataset("folder", str(tmp_path)))
    assert names(tested) == ["cat/1.png", "cat/6.png", "dog/1.png"] and len(training) == 10
    assert set(names(training)).isdisjoint(names(tested)) and training.classnames == tested.classnames
    assert tested.labels == [0, 0, 1] and "one picture in 5 is tested (3), the others train (10)" in tested.notes[-1]
