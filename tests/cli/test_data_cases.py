"""Data as people really have it, each situation by its command: the figure is right, or one line says why there is none.

They mirror the situations that the project was given (`cases/`), as small inputs; those of checkpoints are in
converters/test_checkpoint_cases.py, what each reader does with them in data/."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import small
from PIL import Image

from regcache_jax.data import emoji
from regcache_jax.demo.bundled import bundled_model
from regcache_jax.models.folder import save

MODEL = bundled_model()
NAMES = ("banana", "sunflower", "volcano")


def drawn(split, count):
    """PNGs of a few concepts of the bundled pictures: number of the name, name of the picture, bytes."""
    found: dict[str, int] = {}
    for vendor, concept, rendering in emoji.pictures(split):
        name = emoji.class_names()[concept]
        if name in NAMES and found.get(name, 0) < count:
            found[name] = found.get(name, 0) + 1
            content = io.BytesIO()
            Image.fromarray(emoji.render(vendor, concept, rendering)).save(content, "PNG")
            yield NAMES.index(name), f"{vendor}_{rendering}", content.getvalue()


def lay_out(folder, split="test", count=2, names=NAMES):
    """Those pictures as folders of classes."""
    for number, name, content in drawn(split, count):
        if NAMES[number] in names:
            (folder / NAMES[number]).mkdir(parents=True, exist_ok=True)
            (folder / NAMES[number] / f"{name}.png").write_bytes(content)
    return folder


@pytest.fixture
def evaluated(regcache, tmp_path):
    """Runs `regcache evaluate`; returns the row that it writes and what it says, or the line of a refusal alone."""

    def run(*arguments, model=MODEL):
        file = tmp_path / "row.json"
        file.unlink(missing_ok=True)
        status, _, err = regcache("evaluate", model, *arguments, "--json", file)
        if status:
            (line,) = [line for line in err.splitlines() if line.startswith("regcache:")]
            assert status == 1 and not file.exists() and "Traceback" not in err
            return line
        return json.loads(file.read_text()), err

    return run


def accuracy(row):
    return row["metrics"]["acc1"], row["quantization"]["examples"]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_captions_are_utf_8_where_they_are_needed_and_not_read_where_not(evaluated, tmp_path, encoding):
    folder = lay_out(tmp_path / "pictures", count=1)
    for file in folder.rglob("*.png"):
        file.with_suffix(".txt").write_bytes(f"the dog\u2019s {file.parent.name}".encode(encoding))
    data = ("--dataset", "folder", "--data-dir", folder)
    assert accuracy(evaluated(*data)[0]) == (1.0, 3)
    found = evaluated(*data, "--task", "zeroshot_retrieval")
    if encoding.startswith("utf-8"):
        assert found[0]["metrics"]["image_retrieval_recall@1"] == 1.0
    else:
        assert "banana" in found and ".txt is not UTF-8 text: byte 0x" in found


def test_a_byte_order_mark_before_class_names_is_skipped(evaluated, tmp_path):
    folder = lay_out(tmp_path / "pictures", count=1)
    (tmp_path / "bom.json").write_bytes(json.dumps(NAMES).encode("utf-8-sig"))
    row, _ = evaluated("--dataset", "folder", "--data-dir", folder, "--classnames", tmp_path / "bom.json")
    assert accuracy(row) == (1.0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("task", [("knn", "--neighbours", "5"), ("linear_probe",)])
def test_a_class_that_has_no_test_pictures_moves_no_other(evaluated, tmp_path, task):
    lay_out(tmp_path / "train", "train", count=6)
    lay_out(tmp_path / "test", names=NAMES[1:])
    row, _ = evaluated("--dataset", "folder", "--data-dir", tmp_path, "--task", *task)
    assert accuracy(row) == (1.0, 4)


def test_features_that_are_not_finite_stop_a_command_and_are_never_right(evaluated, tmp_path):
    lay_out(tmp_path / "train", "train", count=6)
    lay_out(tmp_path / "test")
    encoder = small.encoder("siglip")
    image = encoder.params.image
    broken = image.replace(patch_embedding=image.patch_embedding.replace(bias=image.patch_embedding.bias + np.inf))
    folder = save(tmp_path / "model", encoder.replace(params=encoder.params.replace(image=broken)))
    line = evaluated("--dataset", "folder", "--data-dir", tmp_path, "--task", "knn", model=folder)
    assert "siglip" in line and "patch_embedding" in line


@pytest.mark.slow
def test_links_are_followed_and_those_that_lead_nowhere_are_counted(evaluated, tmp_path):
    lay_out(tmp_path / "store")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in NAMES:
        (linked / name).symlink_to(tmp_path / "store" / name)
    row, err = evaluated("--dataset", "folder", "--data-dir", linked)
    assert accuracy(row) == (1.0, 6) and "not read" not in err
    (linked / "pear").symlink_to(tmp_path / "nowhere")
    row, err = evaluated("--dataset", "folder", "--data-dir", linked)
    assert accuracy(row) == (1.0, 6) and "links that lead nowhere 1" in err


LINES = "\n".join(NAMES) + "\n"
SHARDS = {
    "plain": (lambda n, c, p: [("png", p), ("cls", b"%d" % c)], LINES, 6),
    "newline": (lambda n, c, p: [("cls", b"%d\n" % c), ("PNG", p)], LINES, 6),
    "no class": (lambda n, c, p: [("png", p), *([] if n % 3 == 0 else [("cls", b"%d" % c)])], LINES, 4),
    "no picture": (lambda n, c, p: [("cls", b"%d" % c), *([] if n % 3 == 0 else [("png", p)])], LINES, 4),
    "blank name": (lambda n, c, p: [("png", p), ("cls", b"%d" % (c + 1))], "\n" + LINES, 6),
    "words": (lambda n, c, p: [("png", p), ("cls", NAMES[c].encode())], LINES, "must hold the number of a class, got"),
    "dotted": (lambda n, c, p: [("Left.png", p), ("cls", b"%d" % c)], LINES, "the suffixes there are cls, left.png"),
    "short": (lambda n, c, p: [("png", p), ("cls", b"%d" % c)], "banana\nsunflower\n", "is of class 2; there are 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARDS)
def test_odd_shards_give_right_figures_over_what_was_counted_or_one_line(evaluated, tmp_path, kind):
    entry, names, expected = SHARDS[kind]
    (tmp_path / "test").mkdir()
    (tmp_path / "classnames.txt").write_text(names)
    with tarfile.open(tmp_path / "test" / "0.tar", "w") as archive:
        for number, (concept, _, picture) in enumerate(drawn("test", 2)):
            for suffix, content in entry(number, concept, picture):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    found = evaluated("--dataset", "wds/x", "--data-dir", tmp_path)
    if isinstance(expected, str):
        assert "test/0.tar" in found or "/test: the shards hold" in found
        assert expected in found
    else:
        assert accuracy(found[0]) == (1.0, expected)


THIN = """
import resource, sys
from regcache_jax.cli.main import main

try:
    main(["embed", *sys.argv[1:]])
except SystemExit as end:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    sys.exit(end.code)
"""


@pytest.mark.slow
def test_a_picture_of_one_row_costs_the_memory_of_its_crop(tmp_path):
    folder = save(tmp_path / "model", small.encoder("siglip"))
    peaks = []
    for width in (20, 20_000):
        images = tmp_path / str(width)
        images.mkdir()
        Image.fromarray(np.full((1, width, 3), 51, np.uint8)).save(images / "a.png")
        arguments = [str(folder), "--images", str(images), "--out", str(tmp_path / f"{width}.npz")]
        done = subprocess.run([sys.executable, "-c", THIN, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 100_000  # KiB; resized before it is cropped it would take 19 GB
    features = [np.load(tmp_path / f"{width}.npz")["features"] for width in (20, 20_000)]
    np.testing.assert_allclose(*features, atol=1e-5)


@pytest.mark.slow
def test_blank_pictures_and_pruned_channels_give_finite_features_and_are_said(regcache, tmp_path):
    encoder = small.encoder("siglip")
    mlp = encoder.params.image.blocks.mlp
    kernel = np.array(mlp.fc1.kernel)
    kernel[:, :, :10] = 0
    pruned = encoder.params.image.blocks.replace(mlp=mlp.replace(fc1=mlp.fc1.replace(kernel=kernel)))
    params = encoder.params.replace(image=encoder.params.image.replace(blocks=pruned))
    folder = save(tmp_path / "model", encoder.replace(params=params))
    for name, pixels in (("black", [0, 0]), ("noise", [0, 255])):
        (tmp_path / name).mkdir()
        for number in range(4):
            noise = np.random.default_rng(number).integers(*pixels, (16, 16, 3), np.uint8, endpoint=True)
            Image.fromarray(noise).save(tmp_path / name / f"{number}.png")
    data = ("--dataset", "folder", "--data-dir", tmp_path / "black", "--scheme", "w8a8")
    status, _, err = regcache("quantize", folder, *data, "--method", "smoothquant+erq", "--out", tmp_path / "int8")
    assert status == 0 and "all pictures are the same (4)" in err
    status, _, err = regcache("embed", tmp_path / "int8", "--images", tmp_path / "noise", "--out", tmp_path / "f.npz")
    assert status == 0, err
    features = np.load(tmp_path / "f.npz")["features"]
    assert np.isfinite(features).all() and len(np.unique(features, axis=0)) == 4
