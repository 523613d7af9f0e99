"""Sets of embeddings: their rows are the encoder's, their files those of clip-retrieval, and what is wrong with them is found."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import small
from commands import outcome
from killing import check_every_moment
from PIL import Image

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Tap
from regcache_jax.data.parts import parts_of_images
from regcache_jax.embedding.check import check_set
from regcache_jax.embedding.embed import Running, embed_set
from regcache_jax.embedding.merge import merge
from regcache_jax.embedding.options import SetOptions
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.encoders.outputs import encode_outputs
from regcache_jax.encoders.taps import encode_patches
from regcache_jax.evaluation.zero_shot import encode_ids
from regcache_jax.models.folder import Model, load, save

COUNT = 7
RUNNING = Running(batch_size=2)
OPTIONS = SetOptions(partition=3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven pictures with captions, and beside them a folder in which one of seven is torn."""
    root = tmp_path_factory.mktemp("pictures")
    for folder in ("whole", "torn"):
        (root / folder).mkdir()
        for number in range(COUNT):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
            (root / folder / f"{number}.txt").write_text(f"caption {number}\nanother")
    (root / "torn" / "4.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small CLIP without words."""
    return load(save(tmp_path_factory.mktemp("models") / "clip", small.encoder("clip")))


def expected(model, folder, encode=encode_image, but=()):
    images = [model.preprocess(folder / f"{number}.png") for number in range(COUNT) if number not in but]
    return np.asarray(jax.jit(encode)(model.encoder, np.stack(images)))


def embedded(model, source, folder, **options):
    chosen = dataclasses.replace(OPTIONS, **options)
    return embed_set(model, parts_of_images(str(source), chosen.partition), folder, chosen, RUNNING)


def rows(folder, kind="img_emb"):
    return np.concatenate([np.load(file) for file in sorted((folder / kind).iterdir())])


@pytest.fixture(scope="module")
def whole(model, pictures, tmp_path_factory):
    """A finished set of the whole folder."""
    folder = tmp_path_factory.mktemp("sets") / "set"
    done = embedded(model, pictures / "whole", folder)
    assert (done.pictures, done.unreadable, done.partitions) == (COUNT, 0, 3)
    return folder


@pytest.mark.slow
def test_rows_are_the_encoders_and_metadata_speak_of_them_in_order(whole, model, pictures):
    np.testing.assert_allclose(rows(whole), expected(model, pictures / "whole"), atol=2e-6)  # in other batches
    table = pq.read_table(whole / "metadata")
    assert table.to_pydict() == {
        "image_path": [f"{number}.png" for number in range(COUNT)],
        "caption": [f"caption {number}" for number in range(COUNT)],
    }
    names = sorted(str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file())
    kinds = [
        f"{kind}/{kind}_{number}{suffix}"
        for kind, suffix in (("img_emb", ".npy"), ("metadata", ".parquet"))
        for number in range(3)
    ]
    assert names == [*kinds, *(f"partitions/partition_{number}.json" for number in range(3)), "set.json"]


@pytest.mark.slow
@pytest.mark.parametrize("features", ["class", "patches"])
def test_class_and_patch_tokens_are_those_of_the_encoder_in_both_formats(model, pictures, tmp_path, features):
    def tokens(encoder, images):
        found = encode_outputs(encoder, images, True).patches
        return found if features == "patches" else jax.numpy.asarray(_class(encoder, images))

    wanted = expected(model, pictures / "whole", tokens).astype(np.float16)
    for kind in ("clip-retrieval", "parquet"):
        embedded(model, pictures / "whole", tmp_path / kind, features=features, format=kind, dtype="float16")
    found = rows(tmp_path / "clip-retrieval")
    assert found.shape == wanted.shape and found.dtype == np.float16
    np.testing.assert_allclose(found, wanted, atol=4e-3)  # a last bit of float16
    files = sorted((tmp_path / "parquet" / "features").iterdir())
    column = pq.read_table(files[0]).schema.field("embedding")
    assert column.metadata[b"shape"] == ",".join(map(str, wanted.shape[1:])).encode()
    listed = np.concatenate(
        [np.stack(pq.read_table(file).column("embedding").to_numpy(zero_copy_only=False)) for file in files]
    )
    np.testing.assert_array_equal(listed.reshape(found.shape), found)
    assert check_set(tmp_path / "parquet").rows == COUNT


@pytest.mark.slow
def test_patches_may_be_those_that_leave_a_block(model, pictures, tmp_path):
    embedded(model, pictures / "whole", tmp_path / "set", features="patches", block=1)
    tap = Tap(1, normed=False)
    wanted = expected(model, pictures / "whole", lambda encoder, images: encode_patches(encoder, images, tap))
    np.testing.assert_allclose(rows(tmp_path / "set"), wanted, atol=1e-4)  # of values up to 8, in other batches
    with pytest.raises(UserError, match="--block is of patch features"):
        SetOptions(block=1)


def _class(encoder, images):
    from regcache_jax.encoders.encoder import encode

    return encode(encoder, images).tokens[:, 0]


@pytest.mark.slow
def test_captions_have_rows_beside_their_pictures_and_a_picture_without_one_is_listed(pictures, tmp_path, monkeypatch):
    model = load(save(tmp_path / "model", small.encoder("clip with text")))

    def tokenize(texts):
        ids = [[1 + int(text[-1]), 49, 0, 0, 0, 0] for text in texts]
        return np.array(ids, np.int32)

    monkeypatch.setattr(Model, "tokenize", property(lambda self: tokenize))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes((pictures / "whole" / f"{number}.png").read_bytes())
    for number in (0, 2):
        (folder / f"{number}.txt").write_text(f"caption {number}")
    done = embedded(model, folder, tmp_path / "set", captions=True, allow_unreadable=0.3)
    assert (done.pictures, done.unreadable) == (2, 1)
    np.testing.assert_allclose(
        rows(tmp_path / "set", "text_emb"), encode_ids(model.encoder, tokenize(["0", "2"])), atol=1e-6
    )
    listed = pq.read_table(tmp_path / "set" / "unreadable").to_pydict()
    assert listed == {"image_path": ["1.png"], "error": ["1.png has no caption"]}
    assert check_set(tmp_path / "set").unreadable == 1


@pytest.mark.slow
def test_unreadable_pictures_are_listed_up_to_a_share_and_one_more_ends_the_run(model, pictures, tmp_path):
    done = embedded(model, pictures / "torn", tmp_path / "set", allow_unreadable=0.1)
    assert (done.pictures, done.unreadable) == (6, 1)
    np.testing.assert_allclose(rows(tmp_path / "set"), expected(model, pictures / "torn", but=(4,)), atol=2e-6)
    listed = pq.read_table(tmp_path / "set" / "unreadable").to_pydict()
    assert listed["image_path"] == ["4.png"] and "cannot be read as a picture" in listed["error"][0]
    with pytest.raises(UserError, match=r"--allow-unreadable 0\) 1 picture cannot be read, 0 may be missing: .*4\.png"):
        embedded(model, pictures / "torn", tmp_path / "none", allow_unreadable=0.0)
    assert not list((tmp_path / "none" / "partitions").glob(".*.lock"))  # its claim is let go


@pytest.mark.slow
def test_killed_at_any_moment_a_set_ends_with_the_same_files(model, pictures, tmp_path):
    def job(folder):
        folder.mkdir(exist_ok=True)
        embedded(model, pictures / "torn", folder / "set", allow_unreadable=0.1)

    assert check_every_moment(job, outcome, tmp_path) > 20


@pytest.mark.slow
def test_processes_that_are_killed_and_added_leave_the_files_of_one_that_nobody_disturbs(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "embed.py"
    given = [
        "--pictures",
        "600",
        "--processes",
        "3",
        "--partition",
        "20",
        "--batch-size",
        "20",
        "--again",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, str(script), *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        "600 pictures, each one row, hashes verified" in done.stdout
        and "undisturbed process are the same" in done.stdout
    )


@pytest.mark.slow
def test_a_set_goes_on_only_with_what_it_was_begun_with(whole, model, pictures):
    for source, options, message in (
        ("whole", {"dtype": "float16"}, "begun with other settings: dtype float32, now float16"),
        ("whole", {"partition": 4}, "partitions 3, now 2"),
        ("torn", {}, "begun with another source"),
    ):
        with pytest.raises(UserError, match=message):
            embedded(model, pictures / source, whole, **options)
    with pytest.raises(UserError, match="is no set of embeddings and not empty"):
        embedded(model, pictures / "whole", pictures)
    with pytest.raises(UserError, match="siglip has no class token"):
        embedded(
            dataclasses.replace(model, encoder=small.encoder("siglip")),
            pictures / "whole",
            pictures / "x",
            features="class",
        )


@pytest.mark.slow
def test_one_file_of_a_set_has_the_fields_of_a_small_folders_and_its_rows(whole, tmp_path, pictures):
    merge(check_set(whole), tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as stored:
        np.testing.assert_array_equal(stored["features"], rows(whole))
        assert stored["paths"].tolist() == [f"{number}.png" for number in range(COUNT)]
        assert json.loads(str(stored["captions"]))[6] == ["caption 6"]
        assert stored["features"].dtype == np.float32


@pytest.mark.slow
def test_faiss_takes_the_features_as_they_lie(whole):
    import faiss

    index = faiss.IndexFlatIP(16)
    for file in sorted((whole / "img_emb").iterdir()):
        index.add(np.load(file))
    scores, found = index.search(rows(whole), 1)
    np.testing.assert_array_equal(found[:, 0], range(COUNT))  # every unit feature is nearest to itself
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)


def damage(folder, name, change):
    file = folder / name
    file.write_bytes(change(file.read_bytes()))


def turned(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "img_emb/img_emb_1.npy",
            turned,
            r"damaged are 1 of 3 partitions: img_emb/img_emb_1\.npy is not as it was written \(remove",
        ),
        ("metadata/metadata_2.parquet", lambda content: b"", r"metadata_2\.parquet is not as it was written"),
        (
            "partitions/partition_0.json",
            lambda content: content.replace(b'"rows": 3', b'"rows": 2'),
            r"partition_0\.json is not as it was",
        ),
        ("set.json", lambda content: content.replace(b"float32", b"float16"), r"set\.json is not as it was written"),
        ("partitions/partition_2.json", None, "missing are 1 of 3 partitions, the first is 2; embed again"),
        ("img_emb/img_emb_0.npy", None, r"img_emb_0\.npy is missing"),
    ],
)
def test_what_is_damaged_or_missing_is_named_with_what_to_do(whole, tmp_path, name, change, message):
    import shutil

    copy = shutil.copytree(whole, tmp_path / "copy")
    if change is None:
        (copy / name).unlink()
    else:
        damage(copy, name, change)
    with pytest.raises(UserError, match=message):
        check_set(copy)


@pytest.mark.slow
def test_what_a_check_named_is_made_again(whole, model, pictures, tmp_path):
    import shutil

    copy = shutil.copytree(whole, tmp_path / "copy")
    damage(copy, "img_emb/img_emb_1.npy", turned)
    (copy / "partitions" / "partition_1.json").unlink()
    embedded(model, pictures / "whole", copy)
    assert check_set(copy).rows == COUNT and outcome(copy) == outcome(whole)


def test_what_a_maker_left_that_was_killed_just_after_its_receipt_is_removed(whole, model, pictures):
    left = whole / "partitions" / ".partition_1.json.lock"
    left.write_text("{}")
    embedded(model, pictures / "whole", whole)
    assert not left.exists()


@pytest.mark.slow
def test_the_command_embeds_checks_and_merges(regcache, model, pictures, tmp_path):
    folder = tmp_path / "set"
    status, out, err = regcache(
        "embed", model.folder, "--images", pictures / "torn", "--out", folder, "--partition", 3, "--batch-size", 2
    )
    assert (
        status == 0
        and "6 pictures here, 1 unreadable;" in out
        and "is whole: 3 partitions" in out
        and "3 partitions ..." in err
    )
    status, out, _ = regcache("embed", "--verify", folder)
    assert status == 0 and "is whole: 6 pictures in 3 partitions, 1 unreadable" in out
    status, out, _ = regcache("embed", "--merge", folder, "--out", tmp_path / "all.npz")
    assert status == 0 and "6 pictures -> " in out


@pytest.mark.slow
def test_events_tell_of_the_start_of_each_partition_as_its_receipt_does_and_of_the_end(
    regcache, model, pictures, tmp_path
):
    log, folder = tmp_path / "log", tmp_path / "set"
    asked = ("embed", model.folder, "--out", folder, "--partition", 3, "--events", log, "--images")
    for _ in range(2):
        assert regcache(*asked, pictures / "torn")[0] == 0
    status, _, err = regcache(*asked, pictures / "whole")
    assert status == 1
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in found] == ["start", *["partition"] * 3, "end", "start", "end", "failed"]
    start, *partitions, end, again, nothing, failed = found
    assert (start["partitions"], start["done"], again["done"]) == (3, 0, 3) and start["set"] == again["set"]
    for number, line in enumerate(partitions):
        receipt = json.loads((folder / "partitions" / f"partition_{number}.json").read_text())
        told = {name: line[name] for name in ("rows", "unreadable", "files")}
        assert line["number"] == number and told == {name: receipt[name] for name in told} and line["seconds"] > 0
    assert (end["pictures"], end["unreadable"]) == (6, 1) and 0 < end["waited"] <= end["seconds"]
    assert nothing["pictures"] == 0 and failed["error"] in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("m", "--images", "a", "--out", "x.npz", "--events", "e"), "--events tells of the partitions of a folder"),
        (("m", "--out", "x"), "one of --images and --dataset"),
        (("m", "--images", "a", "--dataset", "dummy", "--out", "x"), "one of --images and --dataset"),
        (("m", "--images", "a"), "--out is needed"),
        (("--images", "a", "--out", "x"), "MODEL is needed"),
        (("--merge", "a", "--out", "x"), "--merge writes an .npz"),
        (("--verify", "a", "--images", "b"), "--verify stands alone"),
        (("m", "--images", "a", "--texts", "t", "--out", "x"), "--texts goes into an .npz"),
        (("m", "--images", "a", "--out", "x.npz", "--dtype", "float16"), "an .npz holds pooled features in float32"),
        (("m", "--images", "a", "--out", "x", "--allow-unreadable", "2"), "allow_unreadable must be at most 1"),
    ],
)
def test_wrong_use_says_what_would_be_right(regcache, arguments, message):
    status, _, err = regcache("embed", *arguments)
    assert status == 2 and message in err
