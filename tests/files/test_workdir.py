"""Stage records: kept while nothing changes, made again otherwise, and never believed when damaged."""

from __future__ import annotations

import io
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from regcache_jax.core.observer import Observer
from regcache_jax.core.plan import make_plan
from regcache_jax.data import open_dataset
from regcache_jax.data.prompts import class_names
from regcache_jax.encoders.preprocess import open_picture
from regcache_jax.files.identity import digest_of
from regcache_jax.files.paths import write_json
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.files.workdir import Workdir, listing, read_array, write_array
from regcache_jax.models.arrays import params_path
from regcache_jax.models.plan_file import load_plan, save_plan
from regcache_jax.registers.search.space import Numbers


class Counting:
    """A stage that makes one file and counts how often it runs."""

    def __init__(self, workdir: Workdir):
        self.workdir, self.runs = workdir, 0

    def __call__(self, made_from="a", files=("out/array.npy",)):
        def make():
            self.runs += 1
            write_array(self.workdir.path / "out" / "array.npy", np.arange(3))
            return {"made": made_from}

        return self.workdir.stage("stage", made_from, make, files)


@pytest.fixture
def stage(tmp_path):
    return Counting(Workdir(tmp_path, Observer()))


def test_a_stage_runs_once_while_nothing_changes(stage):
    first = stage()
    assert stage() == first and stage.runs == 1
    assert first.result == {"made": "a"}


def test_a_stage_runs_again_when_what_it_is_made_from_changes_and_when_it_changes_back(stage):
    digests = [stage(made_from).made_from for made_from in ("a", "b", "a")]
    assert stage.runs == 3 and digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize("damage", ["remove", "change", "cut the record", "list as record"])
def test_a_damaged_stage_runs_again(stage, damage):
    stage()
    file, record = stage.workdir.path / "out" / "array.npy", stage.workdir.path / "stages" / "stage.json"
    if damage == "remove":
        file.unlink()
    elif damage == "change":
        write_array(file, np.arange(4))
    else:
        record.write_text(record.read_text()[:20] if damage == "cut the record" else "[]")
    assert stage().result == {"made": "a"} and stage.runs == 2
    np.testing.assert_array_equal(read_array(file), np.arange(3))


def test_a_stage_that_dies_leaves_no_record_of_its_earlier_self(stage):
    """Or a file of the new making would be taken for one of the old."""
    stage("a")

    def dies():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.workdir.stage("stage", "b", dies, ("out/array.npy",))
    assert not (stage.workdir.path / "stages" / "stage.json").exists()
    assert stage("a").result == {"made": "a"} and stage.runs == 2


def test_another_version_of_the_package_makes_every_stage_again(stage, monkeypatch):
    stage()
    monkeypatch.setattr("regcache_jax.files.workdir.metadata.version", lambda name: "99.0")
    stage()
    assert stage.runs == 2


def test_a_record_is_plain_json(stage):
    stage()
    record = json.loads((stage.workdir.path / "stages" / "stage.json").read_text())
    assert record["result"] == {"made": "a"} and list(record["files"]) == ["out/array.npy"]


def test_a_folder_has_another_digest_when_a_name_or_a_byte_in_it_changes(tmp_path):
    digests = set()
    for name, text in (("a", "x"), ("a", "y"), ("b", "y")):
        folder = Workdir(tmp_path / f"{name}{text}", Observer()).path
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / name).write_text(text)
        digests.add(digest_of(folder))
    assert len(digests) == 3 and None not in digests


def test_a_listing_sees_new_and_changed_files_and_nothing_where_there_is_nothing(tmp_path):
    assert listing("some/name-on-a-hub") == []
    (tmp_path / "a").write_text("1")
    before = listing(tmp_path)
    (tmp_path / "b").write_text("22")
    assert listing(tmp_path)[0] == before[0] and listing(tmp_path)[1][:2] == ("b", 2)
    assert listing(tmp_path / "b")[0][1] == 2


def test_what_a_killed_run_has_half_written_is_removed_and_nothing_else(tmp_path):
    for name in (
        ".results.json.1.partial",
        "models/.w8a8.2.tmp/deep",
        "models/w8a8/.hidden.tmp/own",
        ".git/x.tmp",
        "a.tmp",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    Workdir(tmp_path, Observer())
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".git/x.tmp", "a.tmp", "models/w8a8/.hidden.tmp/own"]


class Bucket(MemoryFileSystem):
    """A store of objects in memory, behind gs:// as gcsfs is."""

    protocol = ("gs", "gcs")

    def __init__(self, *arguments, finalize_on_close=None, **more):
        super().__init__(*arguments, **more)

    def open(self, path, mode="rb", **more):
        return super().open(path, mode.replace("a", "w"), **more)  # gcsfs overwrites where it is asked to append

    @classmethod
    def _strip_protocol(cls, path):
        bare = path.removeprefix("gs://").removeprefix("gcs://").strip("/")
        return f"/{bare}" if bare else ""


@pytest.fixture
def bucket(monkeypatch):
    """A bucket's address."""
    for name in Bucket.protocol:
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, name, Bucket)
    yield "gs://bucket/folder"
    Bucket.store.clear()


def test_a_work_folder_may_lie_on_gs(bucket):
    stage = Counting(Workdir(bucket, Observer()))
    first = stage()
    assert stage() == first and stage.runs == 1
    stage.workdir.path.joinpath("out", "array.npy").write_bytes(b"damaged")
    stage.workdir.path.joinpath(".results.json.1.partial").write_text("")
    again = Counting(Workdir(bucket, Observer()))
    assert again() == first and again.runs == 1
    assert sorted(path.name for path in stage.workdir.path.iterdir()) == ["out", "stages"]


def test_datasets_plans_results_and_lists_of_words_may_lie_on_gs(bucket):
    root = epath.Path(bucket)
    for name in ("cat", "dog"):
        (root / "pictures" / name).mkdir(parents=True)
        picture = io.BytesIO()
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(picture, "png")
        (root / "pictures" / name / "1.png").write_bytes(picture.getvalue())
    dataset = open_dataset("folder", f"{bucket}/pictures")
    assert dataset.classnames == ("cat", "dog") and open_picture(dataset[1].image).size == (4, 4)
    assert [entry[0] for entry in listing(root / "pictures")] == ["cat/1.png", "dog/1.png"]
    (root / "names.json").write_text('["a", "b"]')
    assert class_names(dataset, f"{bucket}/names.json").texts == ("a", "b")
    write_json(root / "rows" / "one.json", {"acc1": 0.5})
    assert json.loads((root / "rows" / "one.json").read_text()) == {"acc1": 0.5}
    plan = make_plan(jnp.ones((2, 1, 1, 4)), jnp.ones((2, 1, 1, 4)), start=1)
    save_plan(root / "plan.safetensors", plan, {"scheme": "w8a8"})
    stored, metadata = load_plan(root / "plan.safetensors")
    assert metadata["scheme"] == "w8a8" and int(stored.start) == 1


def test_a_search_whose_table_lies_on_gs_goes_on(bucket):
    points = [Numbers(start, 4, 1.0, 2, 0, 1) for start in range(3)]
    table = TrialTable(f"{bucket}/plans/trials.jsonl", "one search")
    for number, point in enumerate(points):
        table.add(point, 1, float(number), [float(number)], 10)
    again = TrialTable(f"{bucket}/plans/trials.jsonl", "one search")
    assert again.rows == table.rows and [again.find(point, 1) for point in points] == [[0.0], [1.0], [2.0]]


def test_orbax_is_given_addresses_as_they_are_and_folders_as_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(params_path(epath.Path("gs://bucket/model"))) == "gs://bucket/model/params"
    assert str(params_path(epath.Path("model"))) == str(tmp_path / "model" / "params")
