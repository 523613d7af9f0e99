"""Readers of pictures, of what holds many of them, and of words: names of classes, captions, options of a command."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from fuzz_targets import Make, Target, files_of
from mutations import change_lines, change_shard, change_tree, mutate
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from regcache_jax.cli.run import load_config, override
from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import HALF, Preprocessing
from regcache_jax.data.annotations import read_captions, read_mask, with_captions
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.data.folders import folder_dataset, lines
from regcache_jax.data.parts import parts_of_images
from regcache_jax.data.prompts import class_names, templates
from regcache_jax.data.shards import read, tfrecord_index
from regcache_jax.data.webdataset import webdataset
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.files.bounded import read_text
from regcache_jax.pipeline.config import read_config

PICTURE = Preprocessing(16, "squash", "bilinear", 16, HALF, HALF)


SIZE = 12


def pixels(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8))


def encoded(form: str, picture: Image.Image | None = None) -> bytes:
    content = io.BytesIO()
    (picture or pixels()).save(content, form)
    return content.getvalue()


def pictures(folder: Path) -> Target:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "upright"
    turned = io.BytesIO()
    pixels().save(turned, "JPEG", exif=exif)
    files = {f"a.{form.lower()}": encoded(form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")}
    files |= {
        "turned.jpg": turned.getvalue(),
        "palette.png": encoded("PNG", pixels().convert("P")),
        "clear.png": encoded("PNG", pixels().convert("RGBA")),
        "deep.png": encoded("PNG", Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400)),
        "cmyk.jpg": encoded("JPEG", pixels().convert("CMYK")),
        "packed.tif": packed_tiff(),
    }

    def read(folder: Path) -> None:
        for file in sorted(folder.iterdir()):
            picture = preprocess(file, PICTURE)
            assert picture.shape == (PICTURE.image_size, PICTURE.image_size, 3) and np.isfinite(picture).all()

    return Target(files, ("*",), read, mutate)


def packed_tiff() -> bytes:
    content = io.BytesIO()
    pixels().save(content, "TIFF", compression="tiff_lzw")
    return content.getvalue()


def masks(folder: Path) -> Target:
    grey = pixels().convert("L")
    files = {"grey.png": encoded("PNG", grey), "palette.png": encoded("PNG", pixels().convert("P"))}

    def read(folder: Path) -> None:
        for file in sorted(folder.iterdir()):
            mask = read_mask(epath.Path(file))
            assert mask.dtype == np.uint8 and mask.ndim == 2

    return Target(files, ("*",), read, mutate)


def webdatasets(folder: Path) -> Target:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number in range(3):
            for suffix, held in (
                ("cls", b"%d" % number), ("png", encoded("PNG", pixels(number))), ("txt", b"one\ntwo\n"),
                ("json", b'{"caption": "three"}'),
            ):  # fmt: skip
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(held)
                archive.addfile(member, io.BytesIO(held))
    files = {"test/0.tar": content.getvalue(), "classnames.txt": b"cat\ndog\neel\n"}

    def read(folder: Path) -> None:
        dataset = webdataset("wds/x", epath.Path(folder / "test"), "test")
        for place in range(len(dataset)):
            example = dataset[place]
            assert example.label is None or 0 <= example.label < len(dataset.classnames or ())
            preprocess(example.image, PICTURE)
            assert all(isinstance(text, str) for text in dataset.captions(place))

    return Target(files, ("test/0.tar",), read, change_shard)


def tfrecords(folder: Path) -> Target:
    rows = [b"a" * 20, b"", b"c" * 300]
    content = b"".join(struct.pack("<QI", len(row), 1) + row + struct.pack("<I", 2) for row in rows)

    def records(folder: Path) -> list[bytes]:
        return [read(place, 1 << 20) for place in tfrecord_index(epath.Path(folder / "rows"))]

    return Target({"rows": content}, ("*",), records, mutate)


TABLES: dict[str, dict[str, list[Any]]] = {
    "bytes": {"jpg": [b"no picture", b"", None], "caption": ["one", "zwei", ""], "key": ["a", "b", "c"]},
    "paths": {"image_path": ["a.png", "b.png", "nowhere.png"], "caption": ["one", None, "three"]},
    "hub": {
        "image": [{"bytes": b"no picture", "path": None}, {"bytes": None, "path": "a.png"}],
        "text": ["one", "two"],
    },
}


def parts(folder: Path) -> None:
    """Opens whatever a source of pictures names, and reads what can be read of it."""
    (source,) = folder.glob("source*")
    for part in parts_of_images(str(source), 2):
        dataset = part.open()
        for place in range(len(dataset)):
            dataset.name_of(place)
            assert all(isinstance(text, str) for text in dataset.captions(place))
            with contextlib.suppress(UserError):  # a picture that cannot be read is listed, and the run goes on
                preprocess(dataset[place].image, PICTURE)


def parquet(kind: str, **how: Any) -> Make:
    """A parquet file of pictures, of paths, or as Hugging Face's datasets are."""

    def make(folder: Path) -> Target:
        table = pa.table(TABLES[kind])
        pq.write_table(table, folder / "source.parquet", row_group_size=2, **how)
        return Target({**files_of(folder), "a.png": encoded("PNG")}, ("source.parquet",), parts, mutate)

    return make


def array_records(folder: Path) -> Target:
    writer = ArrayRecordWriter(str(folder / "source.array_record"), "group_size:1")
    feature = tf_example_pb2.Example()
    feature.features.feature["image/encoded"].bytes_list.value.append(encoded("PNG"))
    for record in (encoded("PNG"), feature.SerializeToString(), b""):
        writer.write(record)
    writer.close()
    return Target(files_of(folder), ("*",), parts, mutate)


def lists_of_paths(folder: Path) -> Target:
    files = {"source.txt": b"a.png\r\n\nb/c.png\nhttps://x/y.png\n", "a.png": encoded("PNG")}
    return Target(files, ("source.txt",), parts, mutate)


PETS = Dataset("pets", "test", 3, lambda index: Example(None, index, str(index)), ("cat", "dog", "eel"))


def lists_of_words(folder: Path) -> Target:
    files = {
        "names.json": json.dumps({"pets": ["cat", "dog", "eel"], "others": ["x"]}).encode(),
        "templates.json": json.dumps(["a photo of a {c}.", "{c}"]).encode(),
        "texts.txt": "a cat\r\nein Hündchen\n\n猫\n".encode(),
    }

    def read(folder: Path) -> None:
        assert len(class_names(PETS, str(folder / "names.json")).texts) == 3
        assert all("{c}" in text for text in templates(PETS, str(folder / "templates.json")).texts)
        assert all(isinstance(text, str) for text in lines(read_text(folder / "texts.txt")))

    change = lambda content, rng: (change_tree if content[:1] in b"[{" else mutate)(content, rng)  # noqa: E731
    return Target(files, ("*",), read, change)


def captions(folder: Path) -> Target:
    coco = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
        "annotations": [{"image_id": 7, "caption": "one"}, {"image_id": 9, "caption": "two"}],
    }
    files = {
        "coco.json": json.dumps(coco).encode(),
        "plain.json": json.dumps({"a.png": ["one", "two"], "b.png": "three"}).encode(),
        "pictures/a.txt": "one\nzwölf\n".encode(),
        "pictures/a.png": encoded("PNG"),
    }

    def read(folder: Path) -> None:
        dataset = folder_dataset("folder", epath.Path(folder / "pictures"), None)
        with_captions(dataset, folder / "plain.json")
        found = [*read_captions(folder / "coco.json").values(), dataset.captions(0)]
        assert all(isinstance(text, str) for texts in found for text in texts)

    change = lambda content, rng: (change_tree if content[:1] in b"[{" else mutate)(content, rng)  # noqa: E731
    return Target(files, ("*.json", "*.txt"), read, change)


def overrides(folder: Path) -> Target:
    """What stands behind `regcache run --config demo`, a word a line."""
    asked = [
        "--config.task=knn", "--config.neighbours=3", "--config.schemes=w8a8,w4a4", "--config.rows=plain,registers",
        "--config.search.max_trials", "4", "--config.temperature=0.07", "--config.reference.limit=6",
        "--config.evaluation.split=train", "--config.classnames=names.json", "--config.parallel=jit",
    ]  # fmt: skip

    def read(folder: Path) -> None:
        config = load_config("demo")
        try:
            override(config, tuple(lines((folder / "words").read_text(errors="surrogateescape"))))
        except click.UsageError as error:
            raise UserError(error.message) from None
        read_config(config)

    return Target({"words": "\n".join(asked).encode()}, ("*",), read, change_lines)


TARGETS: dict[str, Make] = {
    "pictures": pictures,
    "masks": masks,
    "webdataset": webdatasets,
    "TFRecord": tfrecords,
    "parquet of pictures": parquet("bytes"),
    "parquet of paths": parquet("paths", compression="none", use_dictionary=False),
    "parquet of datasets": parquet("hub", compression="zstd"),
    "ArrayRecord": array_records,
    "lists of paths": lists_of_paths,
    "lists of words": lists_of_words,
    "captions": captions,
    "overrides": overrides,
}
