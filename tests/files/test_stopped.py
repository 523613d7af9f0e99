"""Whatever stops a job at whichever of its file events: what lies there is whole, and the next run ends as an undisturbed one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from stopping import STOPPER, leftovers
from typing_extensions import TypedDict

from regcache_jax.core.errors import UserError
from regcache_jax.core.observer import Observer
from regcache_jax.core.plan import make_plan
from regcache_jax.files import paths
from regcache_jax.files.lock import held
from regcache_jax.files.log import Log
from regcache_jax.files.paths import whole_folder, write_whole
from regcache_jax.files.sealed import check_folder, describe_folder
from regcache_jax.files.store import Store
from regcache_jax.files.workdir import Workdir, write_array
from regcache_jax.models.plan_file import load_plan, save_plan

ROWS = jnp.ones((2, 1, 1, 4))


class Row(TypedDict):
    number: int


def write(folder):
    write_whole(folder / "file", b"new" * 1000)


def make_folder(folder):
    with contextlib.suppress(UserError), whole_folder(folder / "model") as beside:  # refused where it is there
        (beside / "params").mkdir()
        (beside / "params" / "0").write_bytes(b"1" * 1000)
        (beside / "encoder.json").write_bytes(describe_folder(beside, {"name": "m"}))


def plan(folder):
    if not (folder / "plan").exists():
        save_plan(folder / "plan", make_plan(ROWS, ROWS, start=1))


def stages(folder):
    with held(folder, folder=True):
        workdir = Workdir(folder, Observer())

        def make(name):
            write_array(workdir.path / "out" / name, np.arange(3))
            return {"made": name}

        for name in ("a", "b"):
            workdir.stage(name, name, lambda name=name: make(name), (f"out/{name}",))


def log(folder):
    table = Log(folder / "t.jsonl", {"of": "this"}, Row, "test")
    try:
        for number in range(len(table.rows), 4):
            table.append({"number": number})
    finally:
        table.close()


def chunks(folder):
    store = Store(folder, "rows", "made from this")
    for name in ("0", "1"):
        if store.read(name) is None:
            store.write(name, {"x": np.arange(3)})


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and not path.name.endswith(".lock")
    }


JOBS = {"file": write, "folder": make_folder, "plan": plan, "stages": stages, "log": log, "chunks": chunks}


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["killed", "disk full"])
@pytest.mark.parametrize("name", JOBS)
def test_a_job_stopped_at_every_one_of_its_file_events_goes_on_to_the_same_end(tmp_path, name, full):
    job = JOBS[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    job(whole)
    for at in itertools.count(1):
        folder = tmp_path / f"stopped{at}"
        folder.mkdir()
        (folder / "file").write_bytes(b"old") if name == "file" else None
        stopped = STOPPER.stops(job, folder, at, full)
        if full:
            assert leftovers(folder) == [], at
        visible = {name: content for name, content in contents(folder).items() if "/." not in f"/{name}"}
        for file, content in visible.items():  # whole, or not there
            is_old, line = (
                (name == "file" and content == b"old"),
                name == "log" and contents(whole)[file].startswith(content),
            )
            assert is_old or line or content == contents(whole)[file], (at, file)
        job(folder)
        assert contents(folder) == contents(whole) and leftovers(folder) == [], at
        if not stopped:
            break
    assert at > 4


def test_what_was_made_can_be_read(tmp_path):
    plan(tmp_path)
    make_folder(tmp_path)
    assert int(load_plan(tmp_path / "plan")[0].start) == 1
    description = json.loads((tmp_path / "model" / "encoder.json").read_bytes())
    listed = {name: tuple(each) for name, each in description["sealed_files"].items()}
    check_folder(epath.Path(tmp_path / "model"), listed, "encoder.json")


def in_child(job):
    """Starts a job in a forked child; its end is 0, or 1 for a UserError that says who holds what it wants."""
    child = os.fork()
    if child == 0:
        try:
            job()
            os._exit(0)
        except UserError as error:
            os._exit(1 if "is in use by" in str(error) or "exists already" in str(error) else 2)
        except BaseException:
            os._exit(3)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "stages", "log"])
def test_of_two_runs_at_once_each_ends_whole_or_says_who_holds_the_place(tmp_path, name):
    whole = tmp_path / "whole"
    whole.mkdir()
    JOBS[name](whole)
    for pair in range(10):
        folder = tmp_path / f"pair{pair}"
        folder.mkdir()
        statuses = {ended(child) for child in [in_child(lambda folder=folder: JOBS[name](folder)) for _ in range(2)]}
        assert statuses in ({0}, {0, 1}) and contents(folder) == contents(whole) and leftovers(folder) == []


def test_who_comes_second_is_told_who_holds_the_place_and_a_killed_holder_holds_nobody_up(tmp_path):
    def hold():
        with held(tmp_path, folder=True):
            (tmp_path / "held").write_text("")
            time.sleep(60)

    child = in_child(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with (
        pytest.raises(UserError, match=rf"is in use by process {child} on \S+ since 20\d\d-"),
        held(tmp_path, folder=True),
    ):
        pass
    os.kill(child, 9)
    assert ended(child) == -9
    with held(tmp_path, folder=True), held(tmp_path, folder=True):  # and again within
        pass
    assert leftovers(tmp_path) == []


def test_a_file_that_is_being_written_is_not_swept_from_under_its_writer(tmp_path):
    with held(tmp_path), paths._partial(epath.Path(tmp_path / "own")) as (partial, _):
        (tmp_path / ".other.partial").write_text("left by a killed run")
        Workdir(tmp_path, Observer())
        assert os.path.exists(partial) and not (tmp_path / ".other.partial").exists()
        os.unlink(partial)


def test_why_a_folder_could_not_be_made_is_told_while_a_thread_still_writes_into_it(tmp_path):
    """As TensorStore's threads do on a full disk."""
    stop = time.monotonic() + 0.3

    def go_on(beside):
        number = 0
        while time.monotonic() < stop:
            number += 1
            with contextlib.suppress(OSError):
                (beside / "params" / str(number)).parent.mkdir(exist_ok=True)
                (beside / "params" / str(number)).write_bytes(b"1")

    with pytest.raises(OSError, match="the disk is full"), whole_folder(epath.Path(tmp_path / "model")) as beside:
        writer = threading.Thread(target=go_on, args=(beside,))
        writer.start()
        raise OSError("the disk is full")
    writer.join()
    assert leftovers(tmp_path) in ([], [".model.lock"])
