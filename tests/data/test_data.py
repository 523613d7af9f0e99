"""Datasets and batches: the bundled pictures, folders, TFDS, padding."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import tempfile

import numpy as np
import pytest
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import HALF, Preprocessing
from regcache_jax.data import Missing, Share, batches, emoji, load_images, open_dataset
from regcache_jax.data.prompts import class_names, templates
from regcache_jax.data.shards import tfrecord_index
from regcache_jax.encoders.preprocess import open_picture, preprocess

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
        ({"name": "wds/pets"}, "needs --data-dir"),
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


def test_a_masked_out_foreground_is_background_and_nothing_else():
    picture, inside = emoji.render("twemoji", 3, 2), emoji.foreground("twemoji", 3, 2)
    background = np.round(np.array(emoji.RENDERINGS[2].background) * 255).astype(np.uint8)
    assert (picture[:, 54:] == background).all() and not inside[:, 54:].any()  # right of the drawing
    assert (picture[inside == 1] != background).any(
        axis=-1
    ).mean() > 0.95  # little of it has the background's very colour
    # outside it a drawing is half transparent at most: only pixels of its edge are touched, by less than half of the way
    outside = picture[inside == 0].astype(int)
    assert (outside != background).any(axis=-1).mean() < 0.05 and np.abs(outside - background).max() <= 128


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 9, 16])
def test_processes_read_every_picture_exactly_once_in_equally_many_batches(count, length):
    dataset = open_dataset("emoji", split="test")
    shares = [
        list(batches(dataset, to_small, 3, indices=range(length), share=Share(process, count)))
        for process in range(count)
    ]
    assert len({len(share) for share in shares}) == 1
    read = [int(index) for share in shares for part in share for index in part.place[part.mask]]
    assert sorted(read) == list(range(length))
    labels = {int(i): int(label) for share in shares for part in share for i, label in zip(part.place, part.label)}  # noqa: B905
    assert all(label == dataset[index].label for index, label in labels.items() if index >= 0)


def test_missing_pictures_are_left_out_and_listed_up_to_the_number_allowed(tmp_path):
    for name in "abcde":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    dataset = open_dataset("folder", data_dir=str(tmp_path))
    missing = Missing(2)
    parts = list(batches(dataset, to_small, 2, missing=missing))
    assert [part.place[part.mask].tolist() for part in parts] == [[0], [2], [4]]
    assert len(missing.messages) == 2 and "b.png" in missing.messages[0] and "d.png" in missing.messages[1]
    with pytest.raises(UserError, match=r"2 pictures cannot be read, 1 may be missing.*b\.png.*d\.png"):
        list(batches(dataset, to_small, 2, missing=Missing(1)))


def test_dummy_data_has_any_size_and_is_the_same_every_time():
    dataset = open_dataset("dummy", limit=123_456)
    assert len(dataset) == 123_456
    np.testing.assert_array_equal(dataset[123_455].image, open_dataset("dummy", limit=123_456)[123_455].image)


def write_shard(file, samples):
    with tarfile.open(file, "w") as archive:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def png(colour) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="png")
    return buffer.getvalue()


def test_webdataset_shards_are_read_as_clip_benchmark_lays_them_out(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    samples = [(f"s{i:04d}.{suffix}", data) for i in range(12) for suffix, data in
               (("cls", str(i % 2).encode()), ("png", png((i, 0, 0))), ("txt", f"one {i}\ntwo {i}\n".encode()))]  # fmt: skip
    for shard in range(12):  # 10.tar comes after 9.tar
        write_shard(tmp_path / "test" / f"{shard}.tar", samples[3 * shard : 3 * shard + 3])
    dataset = open_dataset("wds/pets", data_dir=str(tmp_path))
    assert (len(dataset), dataset.classnames, dataset.templates) == (12, ("cat", "dog"), ("a photo of a {c}.",))
    for index in (11, 0, 10):
        example = dataset[index]
        assert example.label == index % 2 and dataset.captions(index) == (f"one {index}", f"two {index}")
        assert np.asarray(open_picture(example.image))[0, 0, 0] == index
    (tmp_path / "test" / "0.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(UserError, match=r"0\.tar is not an uncompressed tar"):
        open_dataset("wds/pets", data_dir=str(tmp_path))


def test_prompts_come_from_the_users_json_with_one_list_a_dataset(tmp_path):
    file = tmp_path / "prompts.json"
    dataset = open_dataset("emoji", split="test")
    file.write_text(json.dumps({"emoji": ["a {c}", "the {c}"]}))
    assert templates(dataset, str(file)) == (("a {c}", "the {c}"), str(file))
    file.write_text(json.dumps(["no place for the class"]))
    with pytest.raises(UserError, match="where the class name goes"):
        templates(dataset, str(file))
    file.write_text(json.dumps({"other": []}))
    with pytest.raises(UserError, match="no entry 'emoji'"):
        class_names(dataset, str(file))


def fake_open_clip(tmp_path, monkeypatch):
    """A package whose import fails: it must be read, not run."""
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "zero_shot_metadata.py").write_text(
        "IMAGENET_CLASSNAMES = ['tench', 'goldfish']\n"
        "OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a bad photo of a {c}.', lambda c: f'art of the {c}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_imagenets_names_and_templates_are_parsed_from_open_clip_without_importing_it(tmp_path, monkeypatch):
    from regcache_jax.data.dataset import Dataset

    imagenet = Dataset("imagenet1k", "validation", 0, lambda index: None, ["n01440764", "n01443537"])
    with pytest.raises(UserError, match="pip install --no-deps open_clip_torch"):
        class_names(imagenet)
    fake_open_clip(tmp_path, monkeypatch)
    assert class_names(imagenet) == (("tench", "goldfish"), "open_clip_torch")
    assert templates(imagenet).texts == ("a bad photo of a {c}.", "art of the {c}")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The bundled pictures, prepared by TFDS without TensorFlow."""
    from regcache_jax.data.regcache_emoji import RegcacheEmoji

    folder = tmp_path_factory.mktemp("tfds")
    RegcacheEmoji(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def check_prepared(folder):
    stored, direct = open_dataset("regcache_emoji", str(folder), "test"), open_dataset("emoji", split="test")
    assert len(stored) == len(direct) == 816
    assert tuple(stored.classnames) == direct.classnames
    same = {direct[index].image.tobytes(): direct[index].label for index in range(816)}
    for index in (0, 400, 815):  # TFDS shuffles by its own keys
        assert same[np.asarray(open_picture(stored[index].image)).tobytes()] == stored[index].label


@pytest.mark.slow
def test_the_tfds_builder_gives_the_same_pictures_without_tensorflow(prepared):
    check_prepared(prepared)
    assert len(open_dataset("regcache_emoji", str(prepared), "test[100:250]")) == 150
    with pytest.raises(UserError, match=r"no split 'validation'.*train, test"):
        open_dataset("regcache_emoji", str(prepared), "validation")
    name, *_, files = open_dataset("tfds/regcache_emoji", str(prepared), "test").identity()
    assert name == "tfds/regcache_emoji" and ["test.array_record" in file for file, *_ in files] == [True]


@pytest.mark.slow
def test_classic_tfrecord_data_is_read_without_tensorflow(prepared, tmp_path):
    from array_record.python.array_record_module import ArrayRecordReader

    source = next(prepared.glob("regcache_emoji/*/"))
    target = tmp_path / "regcache_emoji" / source.name
    target.mkdir(parents=True)
    for file in source.iterdir():
        if "array_record" not in file.name:
            (target / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
            continue
        reader = ArrayRecordReader(str(file))
        with (target / file.name.replace("array_record", "tfrecord")).open("wb") as out:
            for record in reader.read_all():  # length, its checksum, data, its checksum; checksums are not read
                out.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))
        reader.close()
    check_prepared(tmp_path)
    info = target / "dataset_info.json"
    kept = info.read_text()
    info.write_text(kept.replace("tfrecord", "riegeli"))
    with pytest.raises(
        UserError, match=r"stored as riegeli.*prepare it again with `tfds build regcache_emoji --file_format=arr"
    ):
        open_dataset("regcache_emoji", str(tmp_path), "test")
    info.write_text(kept)
    stored = next(target.glob("*test.tfrecord*"))
    stored.write_bytes(stored.read_bytes()[:-7])
    with pytest.raises(UserError, match="is not a whole TFRecord file"):
        open_dataset("regcache_emoji", str(tmp_path), "test")


def test_a_tfrecord_file_is_indexed_by_its_headers(tmp_path):
    from etils import epath

    file = epath.Path(tmp_path) / "rows"
    rows = [b"a", b"", b"ccc"]
    file.write_bytes(b"".join(struct.pack("<QI", len(row), 1) + row + struct.pack("<I", 2) for row in rows))
    places = tfrecord_index(file)
    assert [file.read_bytes()[place.offset : place.offset + place.size] for place in places] == rows
    assert tfrecord_index(file, skip=1, take=1) == places[1:2]


@pytest.mark.slow
def test_the_tfds_names_behind_clip_benchmarks_names_exist():
    import tensorflow_datasets as tfds

    from regcache_jax.data.sources import CLIP_BENCHMARK_NAMES

    assert set(CLIP_BENCHMARK_NAMES.values()) <= set(tfds.list_builders(with_community_datasets=False))


def test_pictures_beyond_the_memory_limit_lie_in_a_mapped_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dataset = open_dataset("emoji", split="test", limit=3)
    kept, mapped = load_images(dataset, to_small), load_images(dataset, to_small, memory_limit=0)
    assert isinstance(mapped, np.memmap) and not isinstance(kept, np.memmap)
    np.testing.assert_array_equal(mapped, kept)
    assert list(tmp_path.iterdir()) == []
