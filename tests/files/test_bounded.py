"""The one way in for files: what is no regular file, too large, no text or no JSON of its schema is refused in one line."""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import Annotated

import pytest
from pydantic import Field

from regcache_jax.core.errors import LONGEST_MESSAGE, UserError, shown
from regcache_jax.files.bounded import open_regular, parse_json, read_bytes, read_json, read_text


@dataclasses.dataclass(frozen=True)
class Inner:
    eps: Annotated[float, Field(gt=0, lt=1)]


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    sizes: tuple[int, ...]
    inner: Inner


GOOD = '{"name": "a", "sizes": [1, 2], "inner": {"eps": 0.5}}'


def _folder(path):
    path.mkdir()


def _pipe(path):
    os.mkfifo(path)


def _circle(path):
    path.symlink_to(path.name)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def _device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda path: None, "No such file"),
        (_folder, "is a folder; expected a regular file"),
        (_pipe, "is a pipe; expected"),
        (_device, "is a device; expected"),
        (_circle, "symbolic links"),
        (_socket, "cannot be read"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch, make, said):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make(tmp_path / "x")
    with pytest.raises(UserError, match=f"x .*{said}"):
        read_bytes("x", 100)


def test_a_file_above_its_limit_is_refused_also_where_it_does_not_state_its_size(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(UserError, match="too large: 5 bytes, at most 4 are read"):
        read_bytes(tmp_path / "x", 4)
    with pytest.raises(UserError, match="too large"):
        read_bytes("/proc/self/maps", 10)  # states a size of 0


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to("x")
    with open_regular(tmp_path / "link", 1) as file:
        assert file.read() == b"1"


def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path):
    (tmp_path / "x").write_bytes("naïve\nna".encode() + "ïve".encode("latin-1"))
    with pytest.raises(UserError, match=r"x is not UTF-8 text: byte 0xef at position 9 \(line 2\)"):
        read_text(tmp_path / "x")


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "EOF"),
        ("{", "EOF"),
        (GOOD.replace("0.5", "NaN"), "line 1"),
        (GOOD.replace("0.5", "1e999"), "beyond what a float holds"),
        (GOOD.replace("0.5", "9" * 5000), "out of range"),
        (GOOD.replace('"sizes"', '"name"'), "'name' stands twice"),
        ("[" * 100_000, "recursion limit"),
        (GOOD.replace("0.5", "0"), r"inner\.eps: input should be greater than 0, got 0"),
        (GOOD.replace("0.5", '"0.5"'), r"inner\.eps: input should be a valid number, got '0\.5'"),
        (GOOD.replace("[1, 2]", "[1, true]"), r"sizes\.1: input should be a valid integer, got True"),
        (GOOD.replace("[1, 2]", "[1, 2.5]"), r"sizes\.1: .*integer, got 2\.5"),
        ('{"sizes": 1, "inner": null}', "name: field required; sizes: .*; inner: .* got None"),
        ("[]", "x: .*object"),
    ],
)
def test_json_that_is_not_what_its_schema_says_is_refused_with_every_place(tmp_path, text, said):
    (tmp_path / "x").write_text(text)
    with pytest.raises(UserError, match=said) as fault:
        read_json(tmp_path / "x", Outer)
    assert str(tmp_path / "x") in str(fault.value) and "\n" not in str(fault.value)


def test_json_of_its_schema_is_an_instance_of_it(tmp_path):
    (tmp_path / "x").write_text("\ufeff" + GOOD)
    assert read_json(tmp_path / "x", Outer) == Outer("a", (1, 2), Inner(0.5))
    assert parse_json(GOOD, object, "here")["sizes"] == [1, 2]
    assert parse_json('{"a": 1}', dict[str, int], "here") == {"a": 1}


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31mb", "a\x00b", "a\u202eb", "a\x9bb", "\ud800"])
def test_nothing_in_a_message_can_steer_a_terminal_or_start_a_line(text):
    assert str(UserError(text)).isprintable() and shown(text).isprintable()
    assert "bad" in str(UserError(f"bad {text}"))


def test_what_is_too_long_is_cut_in_the_middle():
    assert shown("a" * 1000 + "z") == f"{'a' * 147} ... {'a' * 146}z"
    assert (
        len(str(UserError("a" * 10**6))) <= LONGEST_MESSAGE and str(UserError("as it is: ä, 猫")) == "as it is: ä, 猫"
    )


def test_a_store_that_nobody_knows_is_named_wherever_a_path_may_stand(regcache, tmp_path):
    for path in ("foo://a/b", "https://a/b.png"):
        with pytest.raises(UserError, match=f"{path} lies in no store that is known"):
            read_bytes(path, 10)
    status, _, said = regcache("evaluate", "foo://model", "--dataset", "emoji", "--task", "knn")
    assert status == 1 and "foo://model lies in no store that is known" in " ".join(said.split())
