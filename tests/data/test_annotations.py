"""Captions and maps of classes beside a dataset."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image
from test_data import png, write_shard

from regcache_jax.core.errors import UserError
from regcache_jax.data import open_dataset
from regcache_jax.data.annotations import json_captions, read_mask, with_captions, with_masks

PLAIN = {"a.png": ["one", "two"], "sub/b.png": "three"}
COCO = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
    "annotations": [
        {"image_id": 7, "caption": "one"},
        {"image_id": 9, "caption": "three"},
        {"image_id": 7, "caption": "two"},
    ],
}


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "sub/c.png"):
        Image.new("RGB", (6, 4)).save(tmp_path / "pictures" / name)
    return open_dataset("folder", str(tmp_path / "pictures"))


@pytest.mark.parametrize("tree", [PLAIN, COCO])
def test_captions_are_found_by_the_names_of_the_pictures(pictures, tmp_path, tree):
    (tmp_path / "captions.json").write_text(json.dumps(tree))
    dataset = with_captions(pictures, tmp_path / "captions.json")
    assert [dataset.captions(i) for i in range(3)] == [("one", "two"), ("three",), ()]
    assert dataset.identity() != pictures.identity()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable JSON"),
        ("[1]", "must hold"),
        ('{"a.png": 3}', "must hold"),
        ('{"images": [{"id": 1}], "annotations": []}', "COCO's format"),
        ('{"z.png": "a text"}', "names none of the pictures; the first is a.png"),
    ],
)
def test_a_file_that_holds_no_captions_says_what_it_should_hold(pictures, tmp_path, content, message):
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(UserError, match=message):
        with_captions(pictures, tmp_path / "captions.json")


def test_webdataset_captions_may_be_json(tmp_path):
    samples = [("a.png", png((1, 0, 0))), ("a.json", b'{"caption": "one"}'),
               ("b.png", png((2, 0, 0))), ("b.json", b'{"captions": ["two", "three"]}')]  # fmt: skip
    (tmp_path / "test").mkdir()
    write_shard(tmp_path / "test" / "0.tar", samples)
    dataset = open_dataset("wds/x", str(tmp_path))
    assert [dataset.captions(i) for i in range(2)] == [("one",), ("two", "three")]
    with pytest.raises(UserError, match="sample must hold"):
        json_captions(b'{"caption": 3}', "sample")


def test_masks_lie_as_the_pictures_do_and_hold_one_byte_a_pixel(pictures, tmp_path):
    masks = tmp_path / "masks"
    (masks / "sub").mkdir(parents=True)
    palette = Image.fromarray(np.array([[0, 1], [255, 2]], np.uint8)).convert("P")
    Image.fromarray(np.array([[0, 1], [255, 2]], np.uint8)).save(masks / "a.png")
    palette.putpalette([0, 0, 0] * 256)
    palette.save(masks / "sub" / "b.png")
    dataset = with_masks(pictures, masks)
    for place in (0, 1):
        assert dataset.segmentation(place).tolist() == [[0, 1], [255, 2]]
    with pytest.raises(UserError, match=r"c\.png cannot be read"):
        dataset.segmentation(2)
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "png")
    (masks / "a.png").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="one byte a pixel"):
        read_mask(epath.Path(masks / "a.png"))
    with pytest.raises(UserError, match="there is no folder"):
        with_masks(pictures, tmp_path / "nowhere")
