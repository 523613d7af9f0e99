"""The readers that damaged files are tried on, a target each: small sound files, how one is changed, and what reads it.

A target is made in an empty folder, where it may write its sound files with the project's own writers."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fnmatch
import io
import json
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import small
import torch
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from flax import serialization
from mutations import change_lines, change_member, change_shard, change_tree, mutate
from PIL import Image
from randomized import clip, save_random
from regcache_jax.converters.conversion import read_checkpoint
from regcache_jax.converters.huggingface_folder import write_folder
from regcache_jax.converters.readers import read_tensors
from stories import rows as story_rows
from stories import story
from tensorflow_datasets.proto import tf_example_pb2

from regcache_jax.cli.run import load_config, override
from regcache_jax.core.errors import UserError
from regcache_jax.core.observer import Observer
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.spec import HALF, Preprocessing
from regcache_jax.data.annotations import read_captions, read_mask, with_captions
from regcache_jax.data.dataset import Dataset, Example
from regcache_jax.data.folders import folder_dataset, lines
from regcache_jax.data.parts import parts_of_images
from regcache_jax.data.prompts import class_names, templates
from regcache_jax.data.shards import read, tfrecord_index
from regcache_jax.data.webdataset import webdataset
from regcache_jax.embedding.check import check_set, partitions
from regcache_jax.embedding.embed import Running, embed_set
from regcache_jax.embedding.options import SetOptions
from regcache_jax.encoders import words
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.files import results
from regcache_jax.files.bounded import read_json, read_text
from regcache_jax.files.paths import write_json
from regcache_jax.files.sealed import seal
from regcache_jax.files.store import read_arrays, write_arrays
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.files.workdir import Workdir, read_array, write_array
from regcache_jax.models import export
from regcache_jax.models import folder as models
from regcache_jax.models.plan_file import load_plan, save_plan
from regcache_jax.pipeline.config import read_config
from regcache_jax.quantization.calibration import Calibration
from regcache_jax.quantization.histogram import BINS, Histogram
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.search.space import Numbers
from regcache_jax.report.story import read_story

PICTURE = Preprocessing(16, "squash", "bilinear", 16, HALF, HALF)


class Target(NamedTuple):
    """A reader of a folder, its sound files, and how one of them is changed.

    `changed`: patterns of those that are. `right`: of what is sealed, whether what was read is what was written; of other files nobody
    can say. `share`: how many of the changes that are asked for are tried, of readers that take long."""

    files: dict[str, bytes]
    changed: tuple[str, ...]
    read: Callable[[Path], Any]
    change: Callable[[bytes, random.Random], bytes]
    right: Callable[[Any], bool] | None = None
    share: float = 1.0

    def names(self) -> list[str]:
        """The files that are changed."""
        return sorted(name for name in self.files if any(fnmatch.fnmatch(name, pattern) for pattern in self.changed))


Make = Callable[[Path], Target]


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies in a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def same(found: Any, wanted: Any) -> bool:
    """Whether two trees of arrays, texts and numbers are equal."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return False
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in pairs)


def sealed(folder: Path, reader: Callable[[Path], Any], **how: Any) -> Target:
    """A target of what carries its hash: whatever is read must be what was written."""
    files, wanted = files_of(folder), reader(folder)
    usual = {"changed": ("*",), "change": mutate, "right": lambda found: same(found, wanted)}
    return Target(files, read=reader, **{**usual, **how})


# Checkpoints.

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/c": np.ones(3, jnp.bfloat16),
    "b/d": np.zeros((), np.float16),
}


def tensors_of(name: str) -> Callable[[Path], object]:
    """Reads all of a checkpoint's tensors."""
    return lambda folder: [tensor.read() for tensor in read_tensors(folder / name).values()]


def safetensors_file(folder: Path) -> Target:
    content = safetensors.numpy.save(ARRAYS, {"format": "pt"})
    return Target({"w.safetensors": content}, ("*",), tensors_of("w.safetensors"), mutate)


def npz(folder: Path) -> Target:
    packed = io.BytesIO()
    np.savez(packed, **ARRAYS)
    return Target({"w.npz": packed.getvalue()}, ("*",), tensors_of("w.npz"), change_member)


def msgpack(folder: Path) -> Target:
    tree = {"a": ARRAYS["a"], "b": {"c": ARRAYS["b/c"], "d": ARRAYS["b/d"]}}
    content = serialization.msgpack_serialize(tree)
    return Target({"w.msgpack": content}, ("*",), tensors_of("w.msgpack"), mutate)


def saved(**how: Any) -> dict[str, bytes]:
    """A torch file with views, a parameter and things that are no tensors."""
    table, written = torch.arange(24.0).reshape(4, 6), io.BytesIO()
    state = collections.OrderedDict(
        a=table, b=table.T, c=table[1:3].to(torch.bfloat16), d=torch.nn.Parameter(table + 1)
    )
    torch.save({"state_dict": state, "epoch": 3, "history": [0.5, (1, "x")], "none": None}, written, **how)
    return {"w.pt": written.getvalue()}


def torch_zip(folder: Path) -> Target:
    return Target(saved(), ("*",), tensors_of("w.pt"), change_member)


def torch_legacy(folder: Path) -> Target:
    return Target(saved(_use_new_zipfile_serialization=False), ("*",), tensors_of("w.pt"), mutate)


def shards(folder: Path) -> Target:
    name, index = "m-00001-of-00001.safetensors", "m.safetensors.index.json"
    listed = {"metadata": {"total_size": 32}, "weight_map": dict.fromkeys(ARRAYS, name)}
    files = {index: json.dumps(listed).encode(), name: safetensors.numpy.save(ARRAYS)}
    return Target(files, (index,), tensors_of(index), change_tree)


PROCESSOR = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 40, "width": 40},
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "resample": 3,
}


def clip_folder(folder: Path, *changed: str) -> Target:
    files = files_of(save_random(clip(), folder / "source"))
    files["preprocessor_config.json"] = json.dumps(PROCESSOR).encode()
    files["tokenizer_config.json"] = b'{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": "</s>"}'
    files["vocab.json"] = b'{"<s>": 118, "</s>": 119, "a": 1}'

    def usable(folder: Path) -> None:
        encoder = read_checkpoint(str(folder)).encoder
        picture = preprocess(np.full((50, 60, 3), 7, np.uint8), encoder.spec.preprocessing)
        assert picture.shape == (40, 40, 3) and np.isfinite(picture).all()

    return Target(files, changed, usable, change_tree, share=0.5)


def configurations(folder: Path) -> Target:
    return clip_folder(folder, "config.json", "tokenizer_config.json", "vocab.json", "generation_config.json")


def processors(folder: Path) -> Target:
    return clip_folder(folder, "preprocessor_config.json")


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {
            "id": 9,
            "content": "<s>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]+|[0-9]"}, "behavior": "Removed", "invert": True},
    "post_processor": None,
    "decoder": None,
    "truncation": None,
    "padding": None,
    "model": {
        "type": "BPE",
        "unk_token": "<s>",
        "end_of_word_suffix": "</w>",
        "byte_fallback": False,
        "vocab": {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab": 4, "ab</w>": 5, "<s>": 9},
        "merges": [["a", "b"], ["a", "b</w>"]],
    },
}


def tokenizers(folder: Path) -> Target:
    """Every change costs a child process."""

    def read(folder: Path) -> object:
        file = folder / "tokenizer.json"
        return words.read_tried({str(file): file.read_bytes()}, 100)("a photo of a cat")

    return Target({"tokenizer.json": json.dumps(TOKENIZER).encode()}, ("*",), read, change_tree, share=0.2)


# What the project writes itself.


def encoder() -> Encoder:
    """A small one. It is made where it is wanted: a process that has started JAX may not fork."""
    return small.encoder("siglip")


def read_model(folder: Path) -> Any:
    """Every leaf of a model folder."""
    model = models.load(folder)
    return {"params": model.encoder.params, "plan": model.encoder.plan, "name": model.encoder.spec.name}


def model_folders(folder: Path) -> Target:
    models.save(folder / "m", encoder().with_plan(small.plan()))
    return sealed(folder / "m", read_model, share=0.5)


def descriptions(folder: Path) -> Target:
    models.save(folder / "m", encoder())
    return sealed(folder / "m", read_model, changed=("encoder.json",), share=0.5)


def old_folder(folder: Path, name: str) -> dict[str, bytes]:
    """Of what version 0.1.0 wrote, without hashes."""
    with tarfile.open(Path(__file__).parent / "models" / "data" / "version_0_1_0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return files_of(folder / name) if (folder / name).is_dir() else {name: (folder / name).read_bytes()}


def old_descriptions(folder: Path) -> Target:
    return Target(old_folder(folder, "twin"), ("encoder.json",), read_model, change_tree, share=0.2)


def old_parameters(folder: Path) -> Target:
    return Target(old_folder(folder, "float"), ("params/*",), read_model, mutate, share=0.2)


def plan_of(folder: Path) -> Any:
    plan, metadata = load_plan(folder / "plan.safetensors")
    return {"plan": plan, "metadata": metadata}


def plans(folder: Path) -> Target:
    calibration = {
        "images": 8, "held_out": 4, "verify_share": 0.25, "seed": 0, "draws": 2, "estimator": "absmax", "hash": "x",
    }  # fmt: skip
    claim = {"error": 0.1, "spread": 0.01, "worst": 0.2, "images": 4}
    metadata = {"encoder": "siglip", "encoder_hash": "0" * 64, "calibration": calibration, "claim": claim}
    save_plan(folder / "plan.safetensors", small.plan(), metadata)
    return sealed(folder, plan_of)


def old_plans(folder: Path) -> Target:
    return Target(old_folder(folder, "plan.safetensors"), ("*",), plan_of, mutate)


def calibrations(folder: Path) -> Target:
    counts = np.zeros((2, 1, 2 * BINS), np.int64)
    counts[..., BINS] = 3
    ends = np.float32([[-1], [-2]]), np.float32([[1], [2]])
    histogram = Histogram(counts, np.zeros((2, 1), np.int32), *ends)
    Calibration(dict.fromkeys(SITES, histogram), False, 3, "0" * 64).save(folder / "c.safetensors")
    return sealed(folder, lambda folder: dataclasses.asdict(Calibration.load(folder / "c.safetensors")))


def trial_tables(folder: Path) -> Target:
    """Of a damaged table the lines before the damage are kept; a line that is missing or there twice is a trial like the others."""

    def rows(folder: Path) -> list[dict[str, Any]]:
        table = TrialTable(folder / "t.jsonl", "search")
        table._log.close()
        return table.rows

    table = TrialTable(folder / "t.jsonl", "search")
    for number in range(4):
        table.add(Numbers(number, 4, 2.5, 0, 0), 8, 0.1 * number, [0.1, 0.2], 1000)
    table._log.close()
    files, written = {"t.jsonl": (folder / "t.jsonl").read_bytes()}, table.rows
    lines_or_bytes = lambda content, rng: rng.choice((change_lines, mutate))(content, rng)  # noqa: E731
    return Target(files, ("*",), rows, lines_or_bytes, right=lambda found: all(row in written for row in found))


def stage_records(folder: Path) -> Target:
    """A damaged stage is made again, so that its result is the same."""

    def stage(folder: Path) -> Any:
        workdir = Workdir(folder, Observer())

        def make() -> dict[str, Any]:
            write_array(workdir.path / "array.npy", np.arange(3))
            return {"made": "a", "number": 0.5}

        found = workdir.stage("stage", "a", make, ("array.npy",))
        return {"result": found.result, "array": read_array(workdir.path / "array.npy")}

    stage(folder)
    return sealed(folder, stage)


def result_rows(folder: Path) -> Target:
    rows = [
        results.row(
            dataset="emoji", model="siglip", pretrained="m", task="knn", metrics={"acc1": 0.5},
            quantization={"scheme": scheme, "registers": False},
        )
        for scheme in ("float", "w8a8")
    ]  # fmt: skip
    results.write(folder / "rows.json", rows)
    return sealed(folder, lambda folder: results.read(folder / "rows.json"))


def stories(folder: Path) -> Target:
    results.write(folder / "results.json", story_rows())
    write_json(folder / "story.json", seal(story()))
    return sealed(folder, lambda folder: list(read_story(folder)))


def kept_chunks(folder: Path) -> Target:
    """A damaged chunk is as good as none."""
    write_arrays(epath.Path(folder / "0.arrays"), ARRAYS)
    wanted = read_arrays(epath.Path(folder / "0.arrays"))
    target = sealed(folder, lambda folder: read_arrays(epath.Path(folder / "0.arrays")))
    return target._replace(right=lambda found: found is None or same(found, wanted))


def exported_programs(folder: Path) -> Target:
    """Nothing of a program runs but with both files as they were written; of those beside it, the order of names is free."""
    export.export(encoder(), folder / "tower", export.Program(("cpu",)))

    def loaded(folder: Path) -> Any:
        export.load(folder / "tower")
        return [(folder / "tower").read_bytes(), read_json(folder / "tower.json", dict[str, Any])]

    return sealed(folder, loaded)


# Data.

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


def sets_of_embeddings(folder: Path) -> Target:
    (folder / "pictures").mkdir()
    for number in range(3):
        pixels(number).save(folder / "pictures" / f"{number}.png")
    model = models.load(models.save(folder / "model", small.encoder("clip")))
    options = SetOptions(partition=2)
    embed_set(model, parts_of_images(str(folder / "pictures"), 2), folder / "set", options, Running(batch_size=2))
    files = files_of(folder / "set")
    rows = lambda folder: [part[0].tolist() for part in partitions(check_set(folder))]  # noqa: E731
    wanted = rows(folder / "set")
    return Target(files, ("*",), rows, mutate, right=lambda found: found == wanted)


def compressed_folders(folder: Path) -> Target:
    """A folder in compressed-tensors' layout, as transformers loads it."""
    encoder = jax.tree.map(jnp.asarray, read_checkpoint(str(save_random(clip(), folder / "source"))).encoder)
    pictures = np.random.default_rng(0).normal(size=(4, 40, 40, 3)).astype(np.float32)
    write_folder(quantize(encoder, pictures, Scheme()), folder / "compressed")
    files = files_of(folder / "compressed")

    def usable(folder: Path) -> None:
        read_checkpoint(str(folder))

    return Target(files, ("config.json",), usable, change_tree, share=0.5)


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
    "safetensors": safetensors_file,
    "shards of safetensors": shards,
    "npz": npz,
    "msgpack": msgpack,
    "torch, zip": torch_zip,
    "torch, legacy": torch_legacy,
    "configurations": configurations,
    "processors": processors,
    "tokenizers": tokenizers,
    "model folders": model_folders,
    "encoder.json": descriptions,
    "encoder.json of 0.1.0": old_descriptions,
    "parameters of 0.1.0": old_parameters,
    "plans": plans,
    "plans of 0.1.0": old_plans,
    "calibrations": calibrations,
    "trial tables": trial_tables,
    "stage records": stage_records,
    "result rows": result_rows,
    "stories": stories,
    "chunks of evaluations": kept_chunks,
    "exported programs": exported_programs,
    "pictures": pictures,
    "masks": masks,
    "webdataset": webdatasets,
    "TFRecord": tfrecords,
    "parquet of pictures": parquet("bytes"),
    "parquet of paths": parquet("paths", compression="none", use_dictionary=False),
    "parquet of datasets": parquet("hub", compression="zstd"),
    "ArrayRecord": array_records,
    "lists of paths": lists_of_paths,
    "sets of embeddings": sets_of_embeddings,
    "compressed folders": compressed_folders,
    "lists of words": lists_of_words,
    "captions": captions,
    "overrides": overrides,
}
