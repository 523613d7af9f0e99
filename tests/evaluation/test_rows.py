"""Rows of a dataset in chunks that a work folder keeps: an evaluation goes on where it stopped, and believes no damaged file."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from small import SPECS

from regcache_jax.core.errors import UserError
from regcache_jax.core.sites import ImageTower, Norm, Parameters
from regcache_jax.data import open_dataset
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.evaluation.rows import Setting, encode_dataset
from regcache_jax.evaluation.watch import Watch
from regcache_jax.files.store import Cache, read_arrays, write_arrays


def corner(encoder, images):
    """A cheap row that depends on encoder and picture."""
    return images[:, 0, 0] + encoder.params.image.position_embedding[0, :3]


@pytest.fixture(scope="module")
def small():
    """An encoder of which only some parameters are there: those that `corner` takes, and one that it does not."""
    position = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    norm = Norm(np.ones(32, np.float32), np.zeros(32, np.float32))
    tower = ImageTower(position_embedding=position, patch_embedding=None, blocks=None, final_norm=norm)
    return Encoder(Parameters(tower), spec=SPECS["no biases"])


def run(small, dataset, setting, **more):
    return encode_dataset(corner, small, dataset, small.spec.preprocessing, setting, **more)


class Counted:
    """Progress that remembers how many pictures it heard of."""

    def __init__(self):
        self.heard = []

    def __call__(self, count):
        self.heard.append(count)


def test_rows_come_in_order_whatever_the_chunks_and_each_chunk_has_its_file(small, tmp_path):
    dataset = open_dataset("emoji", split="test", limit=53)
    whole = run(small, dataset, Setting(8))
    kept = run(small, dataset, Setting(8, workdir=tmp_path, chunk=16))
    np.testing.assert_array_equal(whole.features, kept.features)
    assert kept.places.tolist() == list(range(53)) and kept.labels.tolist() == [dataset[i].label for i in range(53)]
    assert sorted(file.name for file in tmp_path.glob("rows/*/*")) == [
        f"{first:09d}.arrays" for first in (0, 16, 32, 48)
    ]


@pytest.mark.parametrize("harm", ["cut", "flipped", "mixed up", "gone", "half-written"])
def test_a_chunk_that_is_not_as_it_was_written_is_made_again_and_never_believed(small, tmp_path, harm):
    dataset = open_dataset("emoji", split="test", limit=40)
    setting = Setting(8, workdir=tmp_path, chunk=8)
    whole = run(small, dataset, setting)
    first, second, *_ = sorted(tmp_path.glob("rows/*/*"))
    content = second.read_bytes()
    if harm == "cut":
        second.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        second.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    elif harm == "mixed up":
        second.write_bytes(content[:64] + first.read_bytes()[64:])
    else:
        second.unlink()
        if harm == "half-written":
            second.with_name(f".{second.name}.12345678.partial").write_bytes(content[:99])
    told, read = [], Counted()
    watch = Watch()
    again = run(small, dataset, setting, tell=told.append, progress=read, watch=watch)
    np.testing.assert_array_equal(again.features, whole.features)
    assert read.heard == [8] * 5 and watch.elapsed > 0
    assert second.read_bytes() == content and not list(tmp_path.rglob("*.partial"))
    assert bool(told) == (harm in ("cut", "flipped", "mixed up"))
    assert not told or "1 damaged, read again: 000000008" in told[0]


def test_a_finished_evaluation_reads_no_picture_and_other_encoders_data_or_settings_do(small, tmp_path, monkeypatch):
    dataset = open_dataset("emoji", split="test", limit=16)
    setting = Setting(8, workdir=tmp_path)
    run(small, dataset, setting)
    folders = len(list(tmp_path.glob("rows/*")))
    run(small, dataset, setting)
    assert len(list(tmp_path.glob("rows/*"))) == folders == 1
    tower = small.params.image
    louder = tower.replace(final_norm=jax.tree.map(lambda leaf: 2 * leaf, tower.final_norm))
    changed = small.replace(params=Parameters(louder))
    run(changed, dataset, setting)
    run(small, open_dataset("emoji", split="train", limit=16), setting)
    run(small, dataset, setting._replace(parallel="pmap"))
    assert len(list(tmp_path.glob("rows/*"))) == 4


def test_pictures_of_a_folder_that_have_changed_are_read_again(small, tmp_path):
    (tmp_path / "p").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "p" / f"{name}.png")
    setting = Setting(8, workdir=tmp_path / "w")
    before = run(small, open_dataset("folder", str(tmp_path / "p")), setting)
    Image.new("RGB", (9, 9), (200, 20, 30)).save(tmp_path / "p" / "b.png")
    after = run(small, open_dataset("folder", str(tmp_path / "p")), setting)
    assert (before.features[0] == after.features[0]).all() and (before.features[1] != after.features[1]).any()


def test_unreadable_pictures_are_counted_listed_and_left_out_as_far_as_allowed(small, tmp_path):
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    for number in (3, 8):
        (tmp_path / f"{number:02d}.png").write_bytes(b"\x89PNG torn")
    dataset = open_dataset("folder", str(tmp_path))
    work = tmp_path / "kept.work"
    for allowed in (0, 1):
        with pytest.raises(
            UserError, match=rf"2 of 12 .* {allowed} may be missing \(--allow-missing 2.*03\.png.*08\.png"
        ):
            run(small, dataset, Setting(8, allow_missing=allowed, workdir=work, chunk=8))
    for _ in range(2):  # the second time from the files, which know what is missing
        rows = run(small, dataset, Setting(8, allow_missing=2, workdir=work, chunk=8))
        assert rows.places.tolist() == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]
        assert len(rows.missing) == 2 and "03.png" in rows.missing[0] and "08.png" in rows.missing[1]


def test_no_picture_at_all_is_an_error_of_its_own(small, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"no picture can be read \(of 1\); the first: .*a\.png"):
        run(small, open_dataset("folder", str(tmp_path)), Setting(8, allow_missing=1))
    with pytest.raises(UserError, match="the dataset is empty"):
        run(small, open_dataset("emoji", split="test").chosen([]), Setting(8))


def test_arrays_on_disk_come_back_as_they_were(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "text": np.array(["ä", "b"])}
    path = epath.Path(tmp_path) / "x.arrays"
    write_arrays(path, arrays)
    found = read_arrays(path)
    assert found is not None and all((found[name] == arrays[name]).all() for name in arrays)


def test_what_a_text_tower_made_is_made_once_by_its_content(tmp_path):
    made = []

    def make():
        made.append(1)
        return np.ones(3, np.float32)

    cache = Cache(tmp_path)
    for key in ("a", "a", "b"):
        cache.get("texts", [key], make)
    assert len(made) == 2
    Cache(tmp_path).get("texts", ["a"], make)  # another command with the same work folder
    assert len(made) == 2
    for file in tmp_path.rglob("*.arrays"):
        file.write_bytes(file.read_bytes()[:-1])
    assert (Cache(tmp_path).get("texts", ["a"], make) == 1).all() and len(made) == 3


def test_class_vectors_are_found_again_for_the_same_words_and_tower_only(tmp_path):
    from regcache_jax import load
    from regcache_jax.demo.bundled import bundled_model
    from regcache_jax.evaluation.zero_shot import class_vectors

    model = load(bundled_model())
    cache = Cache(tmp_path)
    words = (["cat", "dog"], ["{c}", "a {c}"])
    plain = class_vectors(model.encoder, model.tokenize, *words)
    stored = [class_vectors(model.encoder, model.tokenize, *words, cache=cache) for _ in range(2)]
    assert (stored[0] == plain).all() and stored[1] is stored[0]
    class_vectors(model.encoder, model.tokenize, ["cat", "dog"], ["{c}", "the {c}"], cache=cache)
    text = model.encoder.params.text
    louder = text.replace(embedding=text.embedding * jnp.float32(2))
    half = model.encoder.replace(params=model.encoder.params.replace(text=louder))
    class_vectors(half, model.tokenize, *words, cache=cache)
    assert len(list(tmp_path.glob("class_vectors/*"))) == 3
