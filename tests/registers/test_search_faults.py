"""Searches that are killed, tables that are damaged, sets and encoders that cannot be searched: one clear message each."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from killing import check_every_moment
from small import with_leaves

import regcache_jax as rc
from regcache_jax.files.trial_table import TrialTable
from regcache_jax.registers.search.search import fingerprint
from regcache_jax.registers.search.space import Numbers
from regcache_jax.studies.planted import plant, planted_spec

SPEC = planted_spec(width=32, num_blocks=4, num_heads=2, image_size=16, patch_size=4)
SCHEME = rc.Scheme(8, 8)
CONFIG = rc.SearchConfig(copies=(6.0,), delete_counts=(0, 2), back=1, rounds=1, chunk=2)


@pytest.fixture(scope="module")
def planted():
    return plant(["patch sinks"], spec=SPEC, num_images=6)


def point(start=1):
    return Numbers(start, 4, 6.0, 2, 0)


# ---- the trial table -------------------------------------------------------------------------------------------------


def test_a_table_remembers_trials_by_point_and_images(tmp_path):
    path = tmp_path / "trials.jsonl"
    table = TrialTable(path, "one search")
    table.add(point(), 2, 0.5, [0.4, 0.6], 10)
    again = TrialTable(path, "one search")
    assert again.find(point(), 2) == [0.4, 0.6] and again.find(point(), 3) is None and again.find(point(2), 2) is None
    assert again.rows == table.rows


@pytest.mark.slow
def test_wherever_a_table_is_cut_it_keeps_whole_lines_and_goes_on(tmp_path):
    path = tmp_path / "trials.jsonl"
    table = TrialTable(path, "one search")
    for start in range(3):
        table.add(point(start), 2, 0.1 * start, [0.1 * start], 10)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        again = TrialTable(path, "one search")
        complete = max(0, len(whole[:length].splitlines(keepends=True)) - (not whole[:length].endswith(b"\n")) - 1)
        assert len(again.rows) == complete, length
        for start in range(complete, 3):
            again.add(point(start), 2, 0.1 * start, [0.1 * start], 10)
        assert path.read_bytes() == whole
    assert len(lines) == 4


def test_a_table_of_another_search_is_refused(tmp_path, planted):
    path = tmp_path / "trials.jsonl"
    TrialTable(path, "another search")
    with pytest.raises(rc.UserError, match="belongs to another search"):
        rc.search(planted.encoder, planted.images, SCHEME, CONFIG, table=path)


@pytest.mark.slow
def test_a_search_reads_its_table_instead_of_trying_again(tmp_path, planted):
    path = tmp_path / "trials.jsonl"
    first = rc.search(planted.encoder, planted.images, SCHEME, CONFIG, table=path)
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [{key: row[key] for key in trial} for row, trial in zip(rows, first.trials, strict=True)] == first.trials
    changed = path.stat().st_mtime_ns
    again = rc.search(planted.encoder, planted.images, SCHEME, CONFIG, table=path)
    assert path.stat().st_mtime_ns == changed and again.trials == first.trials
    assert again.block_flops == first.block_flops  # what an earlier run spent is counted


def test_a_search_is_known_by_its_weights_pictures_scheme_and_settings_but_not_by_its_budget(planted):
    def known(encoder=planted.encoder, images=planted.images, scheme=SCHEME, **changes):
        return fingerprint(encoder, images, scheme, dataclasses.replace(CONFIG, **changes), None)

    half = planted.encoder.astype(jnp.bfloat16)
    others = [known(half), known(images=planted.images[:5]), known(scheme=rc.Scheme(4, 4)), known(form="token")]
    assert len({known(), *others}) == 5
    assert known(max_trials=3, memory_limit=1) == known()


@pytest.mark.slow
def test_killed_at_any_moment_the_search_ends_with_the_same_plan_and_table_byte_for_byte(planted, tmp_path):
    config = dataclasses.replace(CONFIG, max_trials=5)

    def search(folder):
        folder.mkdir(exist_ok=True)
        result = rc.search(planted.encoder, planted.images, SCHEME, config, table=folder / "trials.jsonl")
        (folder / "plan.safetensors").unlink(missing_ok=True)
        rc.save_plan(folder / "plan.safetensors", result.plan, {"numbers": vars(result.numbers), "error": result.error})

    def outcome(folder):
        return {name: (folder / name).read_bytes() for name in ("trials.jsonl", "plan.safetensors")}

    assert check_every_moment(search, outcome, tmp_path) > 20


# ---- sets and encoders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 16, 16, 3)), "the reference set is empty"),
        (np.ones((1, 16, 16, 3)), "needs at least 2 images to tell a gain from chance, got 1"),
        (np.eye(16)[:3, :, None, None] * np.ones((3, 16, 16, 3)), "needs at least 4 images .*, got 3"),
        (np.full((4, 16, 16, 3), -1.0), "all 4 reference images are the same"),
        (np.full((4, 16, 16, 3), np.nan), "picture 0 holds NaN or infinity"),
        (np.ones((4, 8, 8, 3)), r"takes preprocessed pictures \[n, 16, 16, 3\], got \[4, 8, 8, 3\]"),
    ],
    ids=["empty", "one image", "three images", "all black", "NaN", "another size"],
)
def test_a_set_that_cannot_be_searched_gets_one_message(planted, images, message):
    with pytest.raises(rc.UserError, match=message):
        rc.search(planted.encoder, images.astype(np.float32), SCHEME, CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ("patch_embedding__kernel", "token norms of block 0 are not finite"),
        ("blocks__mlp__fc1__kernel", "token norms of block 0 are not finite"),
        ("final_norm__scale", "features that are not finite"),
    ],
)
def test_nan_weights_are_named_before_anything_is_searched(planted, leaf, message):
    encoder = with_leaves(planted.encoder, **{leaf: lambda kernel: jnp.full_like(kernel, np.nan)})
    with pytest.raises(rc.UserError, match=message):
        rc.search(encoder, planted.images, SCHEME, CONFIG)


@pytest.mark.slow
def test_a_quantised_encoder_is_not_searched_again(planted):
    int8 = rc.quantize(planted.encoder, jnp.asarray(planted.images), SCHEME)
    for verb in (rc.search, lambda encoder, images, scheme: rc.inspect(encoder, images)):
        with pytest.raises(rc.UserError, match=r"quantised already \(w8a8\)"):
            verb(int8, planted.images, SCHEME)


def test_a_plan_for_another_encoder_is_refused(planted):
    other = plant([], spec=planted_spec(32, 6, 4, 16, 4), num_images=2).encoder
    rows = jnp.ones((4, 1, 2, 16))
    with pytest.raises(
        rc.UserError, match="plan is for 4 blocks of 2 heads of 16; planted has 6 blocks of 4 heads of 8"
    ):
        other.with_plan(rc.make_plan(rows, rows))


def test_more_deletions_than_patches_are_refused(planted):
    rows = jnp.ones((4, 1, 2, 16))
    with pytest.raises(rc.UserError, match="deletes 16 tokens; planted has 16 patches"):
        planted.encoder.with_plan(rc.make_plan(rows, rows, delete_count=16))
    with pytest.raises(rc.UserError, match=r"delete_counts must be 0..15 \(the encoder has 16 patches\), got 20"):
        rc.search(planted.encoder, planted.images, SCHEME, rc.SearchConfig(delete_counts=(0, 20)))


def test_labels_must_fit_the_images(planted):
    config = rc.SearchConfig(objective="accuracy")
    with pytest.raises(rc.UserError, match="a label for each image, got 3 for 6 images"):
        rc.search(
            planted.encoder, planted.images, SCHEME, config,
            labels=np.zeros(3, int), class_vectors=np.ones((2, 32), np.float32),
        )  # fmt: skip
