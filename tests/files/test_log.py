"""Appended logs: whole lines are read again, spoilt ones are not believed, and another file is left alone."""

from __future__ import annotations

import pytest
from typing_extensions import TypedDict

from regcache_jax.core.errors import UserError
from regcache_jax.files.log import Log


class Row(TypedDict):
    number: int


def read(path, belongs_to=None):
    log = Log(path, belongs_to or {"of": "this"}, Row, "test")
    rows = [row["number"] for row in log.rows]
    log.close()
    return rows


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "t.jsonl"
    log = Log(path, {"of": "this"}, Row, "test")
    for number in range(4):
        log.append({"number": number})
    log.close()
    return path


def test_lines_come_back_in_their_order(path):
    assert read(path) == [0, 1, 2, 3]


def test_wherever_a_log_is_cut_whole_lines_are_kept(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read(path) == list(range(max(0, whole[:length].count(b"\n") - 1)))


def test_a_changed_line_is_dropped_with_all_that_follow(path):
    path.write_text(path.read_text().replace('"number": 2', '"number": 7'))
    assert read(path) == [0, 1]
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\n", "is no log of a test: its first line is "),
        (b"[1]\n", "is no log of a test"),
        (b"my own notes\nand more", "is no log of a test"),
        (b"{" * 100_000 + b"\n", "is no log of a test"),
    ],
)
def test_a_file_that_is_no_log_is_refused_and_left_as_it_is(path, content, said):
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} {said}"):
        read(path)
    assert path.read_bytes() == content and sorted(path.parent.iterdir()) == [path]


def test_the_log_of_another_thing_is_refused(path):
    with pytest.raises(UserError, match="belongs to another test; remove it or take another name"):
        read(path, {"of": "that"})
