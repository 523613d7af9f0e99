"""Sources cut into parts: whatever holds the pictures, the same pictures come, and the cut is the source's own."""

from __future__ import annotations

import gc
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_data import write_shard

from regcache_jax.core.errors import UserError
from regcache_jax.data import open_dataset
from regcache_jax.data.batches import batches
from regcache_jax.data.parts import parts_of_dataset, parts_of_images
from regcache_jax.data.patterns import expanded, files_of


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(content, "PNG")
    return content.getvalue()


NUMBERS = range(7)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Seven pictures, each kind of source of them, and a folder that holds both."""
    root = tmp_path_factory.mktemp("sources")
    encoded = [picture(number) for number in NUMBERS]
    (root / "folder").mkdir()
    for number, content in enumerate(encoded):
        (root / "folder" / f"{number}.png").write_bytes(content)
        (root / "folder" / f"{number}.txt").write_text(f"number {number}")
    for name, part in (("00", range(4)), ("01", range(4, 7))):
        samples = [
            file
            for number in part
            for file in ((f"{number}.png", encoded[number]), (f"{number}.txt", f"number {number}".encode()))
        ]
        write_shard(root / f"{name}.tar", samples)
    captions = [f"number {number}" for number in NUMBERS]
    paths = [f"folder/{number}.png" for number in NUMBERS]
    tables = {
        "bytes": {"jpg": encoded, "caption": captions, "key": [f"{number:04d}" for number in NUMBERS]},
        "paths": {"image_path": paths, "caption": captions},
        "hub": {"image": [{"bytes": content, "path": None} for content in encoded], "text": captions},
    }
    for name, table in tables.items():
        pq.write_table(pa.table(table), root / f"{name}.parquet", row_group_size=2)
    (root / "list.txt").write_text("\n".join([*paths[:3], "", *paths[3:]]) + "\n")
    write_records(root / "raw.array_record", encoded)
    return root


def write_records(file, records) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def contents(parts) -> list[int]:
    """The numbers in the pictures of all parts, as workers read them."""
    found = []
    for part in parts:
        dataset = part.open()
        for batch in batches(dataset, lambda image: np.asarray(read(image), np.float32), 2):
            found += batch.image[batch.mask, 0, 0, 0].astype(int).tolist()
    return found


def read(source) -> Image.Image:
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        return opened.convert("RGB")


KINDS = (
    "folder",
    "{00,01}.tar",
    "0*.tar",
    "bytes.parquet",
    "paths.parquet",
    "hub.parquet",
    "list.txt",
    "raw.array_record",
)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_holds_the_pictures_the_same_pictures_come_in_order(sources, kind):
    parts = parts_of_images(str(sources / kind), 3)
    assert contents(parts) == list(NUMBERS)
    assert [part.pictures for part in parts] == ([None, None] if "tar" in kind else [3, 3, 1])
    assert len({str(part.identity) for part in parts}) == len(parts)
    names = [part.open().name_of(place) for part in parts for place in range(len(part.open()))]
    assert len(set(names)) == 7


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("list.txt", "raw.array_record")])
def test_captions_come_along(sources, kind):
    opened = [part.open() for part in parts_of_images(str(sources / kind), 3)]
    found = [text for dataset in opened for place in range(len(dataset)) for text in dataset.captions(place)]
    assert found == [f"number {number}" for number in NUMBERS]


def test_names_are_those_of_the_source(sources):
    def first(kind):
        return parts_of_images(str(sources / kind), 3)[0].open().name_of(1)

    assert first("folder") == "1.png" and first("{00,01}.tar") == "00.tar/1" and first("list.txt") == "folder/1.png"
    assert first("bytes.parquet") == "bytes.parquet/0001" and first("raw.array_record") == "raw.array_record/1"


def test_a_tf_example_is_looked_into_and_one_without_a_picture_says_what_it_has(tmp_path):
    from tensorflow_datasets.proto import tf_example_pb2

    examples = [tf_example_pb2.Example(), tf_example_pb2.Example()]
    examples[0].features.feature["image/encoded"].bytes_list.value.append(picture(5))
    examples[0].features.feature["caption"].bytes_list.value.append(b"five")
    examples[1].features.feature["sound"].bytes_list.value.append(b"la")
    write_records(tmp_path / "x.array_record", [example.SerializeToString() for example in examples])
    dataset = parts_of_images(str(tmp_path / "x.array_record"), 10)[0].open()
    assert dataset[0].image == picture(5) and dataset.captions(0) == ("five",)
    with pytest.raises(UserError, match=r"x\.array_record/1 holds no picture; its features are sound"):
        dataset[1]


@pytest.mark.slow
def test_processes_that_decode_get_every_kind_and_leave_no_shared_memory(sources):
    dataset = parts_of_images(str(sources / "bytes.parquet"), 7)[0].open()
    found = [batch.image[batch.mask] for batch in batches(dataset, _constant, 4, workers=2)]
    assert np.concatenate(found)[:, 0, 0, 0].astype(int).tolist() == list(NUMBERS)
    assert not [each for each in gc.get_objects() if type(each).__name__ == "SharedMemoryArray"]


def _constant(image) -> np.ndarray:
    return np.asarray(read(image), np.float32)


def test_a_dataset_is_cut_and_its_parts_change_with_its_files(sources):
    parts = parts_of_dataset(open_dataset("dummy", limit=5), 2)
    assert [part.pictures for part in parts] == [2, 2, 1]
    assert [part.open().name_of(0) for part in parts] == ["dummy-0", "dummy-2", "dummy-4"]
    assert parts[0].identity != parts_of_dataset(open_dataset("dummy", limit=6), 2)[0].identity


def test_a_list_that_changes_while_it_is_read_is_refused(sources, tmp_path):
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    part = parts_of_images(str(tmp_path / "list.txt"), 2)[0]
    (tmp_path / "list.txt").write_text("a.png\nc.png\n")
    with pytest.raises(UserError, match="is not what it was when the run began"):
        part.open()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{0..2}.tar", ["a0.tar", "a1.tar", "a2.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{a,b}{x,}", ["ax", "a", "bx", "b"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_those_of_webdataset(pattern, names):
    assert expanded(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a{0..2", "braces that do not match"),
        ("{a,{0..1}}", "braces in braces"),
        ("{5..1}", "must count up"),
        ("{0..99999999}", "must count up, at most"),
        ("{0..9999}{0..9999}", "more than 10,000,000 files"),
    ],
)
def test_braces_that_mean_nothing_are_refused(pattern, message):
    with pytest.raises(UserError, match=message):
        expanded(pattern)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{00..02}.tar", r"there is no file .*02\.tar"),
        ("*.tgz", r"no file fits .*\*\.tgz"),
        ("folder/0.png", r"0\.png is no source of pictures: a folder, \.tar shards"),
        ("nothing", "there is no file .*nothing$"),
        ("damaged.parquet", "is no readable parquet file"),
        ("words.parquet", r"has no column of pictures .* it has word"),
        ("empty.txt", "names no pictures"),
        ("damaged.array_record", "is no readable ArrayRecord file"),
    ],
)
def test_what_is_no_source_is_refused_by_name(sources, name, message):
    (sources / "damaged.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"word": ["a"]}), sources / "words.parquet")
    (sources / "empty.txt").write_text("\n\n")
    (sources / "damaged.array_record").write_bytes(b"no records" * 100)
    with pytest.raises(UserError, match=message):
        [part.open() for part in parts_of_images(str(sources / name), 3)]


def test_stars_are_sorted_and_files_are_named_from_the_folder_that_all_share(sources):
    found = files_of(str(sources / "0*.tar"))
    assert [each.name for each in found] == ["00.tar", "01.tar"]
    assert files_of(str(sources / "folder" / "[01].png"))[1].name == "1.png"


def test_a_damaged_row_group_or_record_is_one_line(sources, tmp_path):
    for name in ("bytes.parquet", "raw.array_record"):
        content = bytearray((sources / name).read_bytes())
        content[70:110] = bytes(40)
        (tmp_path / name).write_bytes(content)
        dataset = next(iter(parts_of_images(str(tmp_path / name), 10))).open()
        with pytest.raises(UserError, match=f"{name} is no readable"):
            dataset[0]
