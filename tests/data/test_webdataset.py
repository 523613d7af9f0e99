"""Webdataset shards of odd shapes: each is right, or refused in one line that names the shard and the sample."""

from __future__ import annotations

import io
import tarfile

import pytest
from test_data import png, write_shard

from regcache_jax.core.errors import UserError
from regcache_jax.data import open_dataset

PICTURE = png((1, 2, 3))


def opened(tmp_path, samples, names="cat\ndog\n"):
    (tmp_path / "test").mkdir(exist_ok=True)
    write_shard(tmp_path / "test" / "0.tar", samples)
    if names is not None:
        (tmp_path / "classnames.txt").write_text(names)
    return open_dataset("wds/x", str(tmp_path))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a.png", PICTURE), ("a.cls", b"cat")], r"0\.tar: a\.cls must hold the number of a class, got b'cat'"),
        ([("a.png", PICTURE), ("a.cls", b"-1")], "must hold the number"),
        ([("a.png", PICTURE), ("a.cls", b"1_0")], "must hold the number"),
        (
            [("a.png", PICTURE), ("a.cls", b"2")],
            r"0\.tar: a\.cls is of class 2; there are 2 class names, of classes 0\.\.1",
        ),
        ([("a.png", PICTURE), ("a.jpg", PICTURE)], r"a has several pictures \(png, jpg\)"),
        ([("a.png", PICTURE), ("a.png", PICTURE)], r"sample a has two files \.png"),
        ([("a.png", PICTURE), ("b.png", PICTURE), ("a.cls", b"0")], "the files of sample a do not lie together"),
        ([("a.left.png", PICTURE), ("a.cls", b"0")], r"hold no pictures .* the suffixes there are cls, left\.png"),
    ],
)
def test_what_would_be_guessed_at_is_refused(tmp_path, samples, message):
    with pytest.raises(UserError, match=message):
        opened(tmp_path, samples)


def test_folders_in_a_shard_and_suffixes_in_capitals_are_read_and_what_others_left_there_is_not(tmp_path):
    samples = [("./train/a.PNG", PICTURE), ("./train/a.cls", b"1\n"), ("./train/._a.png", b"mac"), ("./other/a.png", PICTURE),
               ("./other/a.cls", b" 0 "), ("__meta__.json", b"{}")]  # fmt: skip
    dataset = opened(tmp_path, samples)
    assert [dataset[place].label for place in range(len(dataset))] == [1, 0] and dataset.notes == ()


def test_a_sample_without_a_class_has_none_and_one_without_a_picture_is_left_out_and_said(tmp_path):
    dataset = opened(tmp_path, [("a.png", PICTURE), ("b.png", PICTURE), ("b.cls", b"1"), ("c.cls", b"0")])
    assert dataset.labels == [None, 1] and "without a picture: 1 of 3 samples" in dataset.notes[0]


def test_the_number_of_a_line_is_that_of_a_class_blank_ones_too(tmp_path):
    dataset = opened(tmp_path, [("a.png", PICTURE), ("a.cls", b"2")], names="\ncat\ndog\n\n")
    assert dataset.classnames == ("", "cat", "dog") and dataset[0].label == 2


def test_a_shard_that_breaks_off_is_damaged_or_is_two_in_one_is_refused(tmp_path):
    opened(tmp_path, [("a.png", PICTURE), ("b.png", PICTURE), ("c.png", PICTURE)])
    shard = tmp_path / "test" / "0.tar"
    whole = shard.read_bytes()
    size = 512 + 512 * -(-len(PICTURE) // 512)
    for content, message in (
        (whole[: 2 * size], "is not a whole tar shard: it breaks off or is damaged at byte"),
        (whole[: size + 100], "0.tar is not"),
        (whole[: 2 * size - 400], "0.tar is not"),
        (whole[:size] + bytes([255]) + whole[size + 1 :], "0.tar is not"),
        (whole + whole, "holds more after its end"),
        (b"", "0.tar is not an uncompressed tar shard"),
    ):
        shard.write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_dataset("wds/x", str(tmp_path))


def test_a_link_in_a_shard_is_refused(tmp_path):
    opened(tmp_path, [("a.png", PICTURE)])
    with tarfile.open(tmp_path / "test" / "0.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(PICTURE)
        archive.addfile(member, io.BytesIO(PICTURE))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        archive.addfile(link)
    with pytest.raises(UserError, match=r"b\.png is no plain file"):
        open_dataset("wds/x", str(tmp_path))
