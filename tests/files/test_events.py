"""A log of events: lines that several processes append, the last of which says how it ended."""

from __future__ import annotations

import json
import os

import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.files.events import events


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_says_what_when_and_who_and_comes_after_those_that_are_there(tmp_path):
    for number in range(2):
        with events(str(tmp_path / "log")) as tell:
            tell("start", number=number)
    found = lines(tmp_path / "log")
    assert [(line["event"], line["number"], line["process"]) for line in found] == [
        ("start", 0, os.getpid()),
        ("start", 1, os.getpid()),
    ]
    assert found[0]["host"] and found[0]["time"] <= found[1]["time"] and found[0]["time"].endswith("+00:00")


@pytest.mark.parametrize(("error", "message"), [(UserError("no such"), "no such"), (KeyboardInterrupt(), "Keyboard")])
def test_an_error_is_the_last_line_and_goes_on(tmp_path, error, message):
    with pytest.raises(type(error)), events(str(tmp_path / "log")):
        raise error
    (line,) = lines(tmp_path / "log")
    assert line["event"] == "failed" and message in line["error"]


@pytest.mark.parametrize(
    ("name", "message"), [("gs://a/log", "cannot be appended"), ("none/log", "cannot be written: No such file")]
)
def test_where_nothing_can_be_appended_that_is_said_before_anything_is_done(tmp_path, name, message):
    with pytest.raises(UserError, match=message), events(name if "://" in name else str(tmp_path / name)):
        raise AssertionError
