from __future__ import annotations

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.observer import Observer
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.files.workdir import Workdir
from regcache_jax.models.plan_file import load_plan
from regcache_jax.quantization.quantize import quantize
from regcache_jax.studies import composed, plans
from regcache_jax.studies.auto import AutoConfig, auto, halves
from regcache_jax.studies.cells import Cell, Entry, cells_of
from regcache_jax.studies.choice import choose, equals, ranked
from regcache_jax.studies.cost import Price, cost
from regcache_jax.studies.grid import Bench, Judge, compare, features_of, label_free_error
from regcache_jax.studies.plans import find_plans
from regcache_jax.studies.planted import plant, planted_spec
from regcache_jax.studies.recipes import RECIPES, scheme_of
from regcache_jax.studies.sheets import markdown, pareto, write_tables

IMAGES = np.asarray(small.images(32))
BENCH = Bench(
    small.encoder("clip"),
    IMAGES[:16],
    IMAGES[16:],
    {"w8a8": small.plan(1)},
    Judge("half", lambda features: {"acc1": 0.5}),
)


class Recorder(Observer):
    """Remembers which stages ran."""

    def __init__(self):
        self.ran = []

    def started(self, stage):
        self.ran.append(stage)


def run(out, recipes=("rtn", "token"), bits=("w8a8", "w4a4"), **changes):
    """What comes of a small comparison, and which stages were run for it."""
    bench, recorder = dataclasses.replace(BENCH, **changes), Recorder()
    return compare(bench, cells_of(recipes, bits, bench.plans), Workdir(out, recorder)), recorder.ran


@pytest.mark.slow
def test_the_grid_has_every_cell_and_goes_on_with_those_that_are_missing(tmp_path):
    entries, _ = run(tmp_path)
    assert [entry.name for entry in entries] == [
        "w8a8-rtn", "w8a8-rtn-registers", "w8a8-token", "w8a8-token-registers", "w4a4-rtn", "w4a4-token",
    ]  # fmt: skip
    by_name = {entry.name: entry for entry in entries}
    assert by_name["w8a8-rtn"].error < by_name["w4a4-rtn"].error
    reference = features_of(BENCH.encoder, BENCH.scoring)
    plain = quantize(BENCH.encoder, BENCH.calibration, Scheme())
    direct = label_free_error(features_of(plain, BENCH.scoring), reference)
    assert by_name["w8a8-rtn"].error == pytest.approx(direct, rel=1e-4)
    (tmp_path / "stages" / "evaluate_w8a8-token.json").unlink()
    again, ran = run(tmp_path)
    assert ran == ["evaluate_w8a8-token"]
    assert [(e.name, e.error) for e in again] == [(e.name, e.error) for e in entries]


@pytest.mark.slow
def test_what_was_made_from_other_things_is_made_anew(tmp_path):
    few = {"recipes": ("token",), "bits": ("w8a8",)}
    both = ["evaluate_w8a8-token", "evaluate_w8a8-token-registers"]
    assert run(tmp_path, **few)[1] == both and run(tmp_path, **few)[1] == []
    for change, stages in (
        ({"calibration": IMAGES[:8]}, both),
        ({"price": Price("cycles", cost)}, both),
        ({"judge": None}, both),
        ({"encoder": small.encoder("clip", seed=1)}, both),
        ({"plans": {"w8a8": small.plan(2)}}, both[1:]),
    ):
        run(tmp_path, **few)
        assert run(tmp_path, **few, **change)[1] == stages


@pytest.mark.slow
def test_an_entry_that_cannot_be_says_why(tmp_path):
    (plain, faulty), _ = run(tmp_path, recipes=("rotation",), bits=("w8a8",))
    assert plain.fault is None and "search for a plan on the rotated encoder" in faulty.fault
    assert faulty.error is None


@pytest.mark.slow
def test_a_cost_that_nobody_knows_is_noted_beside_the_error(tmp_path):
    def compiler(encoder):
        raise UserError("the compiler gave no answer")

    (entry,), _ = run(tmp_path, recipes=("token",), bits=("w4a4",), price=Price("cycles", compiler))
    assert entry.error is not None and (entry.cost, entry.note) == (None, "cost unknown: the compiler gave no answer")
    assert pareto([entry]) == []


@pytest.mark.slow
def test_a_plan_is_found_again_for_the_same_encoder_pictures_and_settings_alone(tmp_path, monkeypatch):
    """A plan was once known by its file's name: another encoder of the same shape silently got the old one."""
    spec = planted_spec(width=32, num_blocks=4, num_heads=2, image_size=16, patch_size=4)
    one = plant(["patch sinks"], spec=spec, num_images=6)
    config = SearchConfig(copies=(6.0,), delete_counts=(0,), back=0, registers=(1,), rounds=0, chunk=3)
    searched = []
    original = plans.search
    monkeypatch.setattr(plans, "search", lambda *args, **more: searched.append(args) or original(*args, **more))

    def find(encoder, images, config):
        searched.clear()
        found = find_plans(encoder, np.asarray(images), ("w8a8",), Workdir(tmp_path, Observer()), config)
        return found.get("w8a8"), len(searched)

    plan, times = find(one.encoder, one.images, config)
    assert times == 1 and find(one.encoder, one.images, config)[1] == 0
    other = plant(["patch sinks"], spec=spec, num_images=6, seed=1).encoder
    found, times = find(other, one.images, config)
    assert times == 1 and (found is None or not np.array_equal(found.key, plan.key))
    assert find(one.encoder, one.images[:5], config)[1] == 1
    assert find(one.encoder, one.images, dataclasses.replace(config, seed=1))[1] == 1
    again, times = find(one.encoder, one.images, config)
    assert times == 1 and np.array_equal(again.key, plan.key)
    (file,) = tmp_path.glob("plans/w8a8-registers.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"!")  # changed since
    assert find(one.encoder, one.images, config)[1] == 1 and load_plan(file)[0].has_registers


@pytest.mark.slow
def test_tables_are_written_in_clip_benchmarks_keys(tmp_path):
    entries = [
        Entry(Cell("w8a8", "rtn"), 0.1, 10.0, {"acc1": 0.5}),
        Entry(Cell("w8a8", "rtn", "registers"), 0.01, 11.0, {"acc1": 0.75}),
        Entry(Cell("w8a8", "rotation", "registers"), fault="cannot"),
    ]
    written = write_tables(entries, tmp_path, small.encoder(), dataset="emoji", float_metrics={"acc1": 0.8})
    rows = json.loads((tmp_path / "compare.json").read_text())
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(rows[0])
    assert rows[1]["quantization"]["registers"] is True and rows[1]["metrics"] == {"acc1": 0.75}
    table = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    assert (table[1]["error"], table[2]["fault"]) == ("0.01", "cannot")
    assert markdown(entries).splitlines()[2:] == ["| rtn | **50.0** | **75.0** |", "| rotation | - | - |"]
    assert all(path.exists() for path in written) and not list(tmp_path.glob("*.partial"))


def test_the_pareto_front_by_hand():
    points = [
        Entry(Cell("w8a8", "a"), 0.5, 1.0),
        Entry(Cell("w8a8", "b"), 0.6, 2.0),
        Entry(Cell("w8a8", "c"), 0.1, 3.0),
    ]
    assert [entry.cell.recipe for entry in pareto([*points, Entry(Cell("w8a8", "d"), fault="x")])] == ["a", "c"]


@pytest.mark.slow
def test_cost_by_hand():
    # clip: 17 tokens, width 24, F 40, 3 blocks: products 17 * (4 * 24 * 24 + 2 * 24 * 40), attention 2 * 17 * 17 * 24 in float
    encoder, images = small.encoder("clip"), small.images(4)
    products, attention = 17 * (4 * 24 * 24 + 2 * 24 * 40), 2 * 17 * 17 * 24
    assert cost(encoder) == 3 * (2 * products + 2 * attention)
    assert cost(quantize(encoder, images, Scheme())) == 3 * (products + 2 * attention)
    # integer attention costs as much as int8 products do; twin ranges make two products of fc2 and of p v
    assert cost(quantize(encoder, images, Scheme(products=("qk", "pv")))) == 3 * (products + attention)
    twin = quantize(encoder, images, Scheme(method="ptq4vit", products=("qk", "pv")))
    assert cost(twin) == 3 * (products + 17 * 24 * 40 + attention + attention / 2)
    # registers see two rows in blocks 1 and 2, and two tokens leave at block 1
    shorter = 15 * (4 * 24 * 24 + 2 * 24 * 40) + 2 * 2 * 15 * 17 * 24
    assert cost(quantize(encoder, images, Scheme(), small.plan(2))) == products + 2 * attention + 2 * shorter


def test_every_recipe_is_a_scheme():
    for recipe in RECIPES:
        assert scheme_of(recipe, "w6a6").name == "w6a6"
    composed = scheme_of("smoothquant+erq@group@percentile", "w8a8")
    assert (composed.method, composed.activations, composed.estimator) == ("smoothquant+erq", "group", "percentile")
    for wrong, message in (
        ("magic", "unknown recipe"),
        ("gptq@magic", "unknown recipe"),
        ("rtn@token@mse", "goes with"),
    ):
        with pytest.raises(UserError, match=message):
            scheme_of(wrong, "w8a8")


def test_auto_takes_the_least_error_that_the_limit_allows():
    entries = [
        Entry(Cell("w8a8", "a"), 0.5, 1.0),
        Entry(Cell("w8a8", "b"), 0.1, 3.0),
        Entry(Cell("w8a8", "c"), 0.3, 1.05),
    ]
    assert choose(entries, None).cell.recipe == "b"
    assert choose(entries, 1.1).cell.recipe == "c"
    assert choose(entries, 1.0).cell.recipe == "a"
    unknown = [Entry(Cell("w8a8", "d"), 0.01, note="cost unknown: no compiler")]
    assert choose([*entries, *unknown], None).cell.recipe == "d"
    assert choose([*entries, *unknown], 1.1).cell.recipe == "c"
    with pytest.raises(UserError, match="cost is known, so none can be held to a limit: cost unknown: no compiler"):
        choose(unknown, 1.1)
    with pytest.raises(UserError, match="nothing could be tried: broken"):
        choose([Entry(Cell("w8a8", "a"), fault="broken")], None)


def entry(name, drawn, cost=1.0):
    return Entry(Cell("w8a8", name), float(np.mean(drawn)), cost, errors=np.asarray(drawn).tolist())


def test_ties_go_to_the_cheaper_then_to_the_better_tail():
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.5, 1.5, (2, 64))
    best, equal = entry("best", noise, 1.2), entry("equal", noise + rng.normal(0, 0.1, noise.shape), 1.0)
    clear = entry("clear", noise * 0.5, 2.0)
    assert choose([best, equal]) is equal  # the means differ by less than the pictures do
    assert choose([best, equal, clear]) is clear  # a real gain is not a tie, whatever it costs
    tail = equal.errors[0].index(max(equal.errors[0]))
    calmer = [list(drawn) for drawn in equal.errors]
    calmer[0][tail] -= 0.05
    assert choose([equal, entry("a calmer one", calmer)]).cell.recipe == "a calmer one"
    assert [each.cell.recipe for each in equals([best, equal, clear])] == ["clear"]
    assert ranked([best, clear, equal]) == [clear, equal, best]


def test_two_draws_that_differ_are_told_from_one_that_is_lucky():
    drawn = np.ones((2, 64))
    steady, lucky = entry("steady", drawn), entry("lucky", drawn * [[0.5], [1.4]], 2.0)
    assert lucky.error < steady.error and choose([steady, lucky]) is steady
    assert lucky.jitter == pytest.approx(0.45, rel=0.01) and steady.jitter == 0


def test_a_better_mean_is_not_bought_with_a_worse_tail():
    even = entry("even", np.full((1, 64), 0.010))
    spiky = entry("spiky", [[0.008] * 63 + [0.09]])
    assert spiky.error < even.error and choose([even, spiky]) is even
    far = entry(
        "far", np.full((1, 64), 0.03)
    )  # its tail is even, but its mean three times the least: no measure for others
    assert choose([spiky, far]) is spiky


@pytest.mark.slow
def test_recipes_are_composed_of_the_parts_that_come_through(tmp_path, monkeypatch):
    monkeypatch.setattr(composed, "PREPARING", ("rtn", "smoothquant"))
    monkeypatch.setattr(composed, "SHARINGS", ("static", "group", "token"))
    monkeypatch.setattr(composed, "ROUNDINGS", ("", "clipping"))
    monkeypatch.setattr(composed, "RANGES", ("absmax", "asymmetric"))
    recorder = Recorder()
    config = AutoConfig(bits=("w4a4",), registers=False, static_only=True)
    result = auto(small.encoder("clip"), np.asarray(small.images(64, seed=1)), Workdir(tmp_path, recorder), config)
    few = [stage for stage in recorder.ran if stage.startswith("few_")]
    assert few[:4] == [f"few_w4a4-{method}@{who}" for method in ("rtn", "smoothquant") for who in ("static", "group")]
    assert any("clipping" in stage for stage in few) and any("asymmetric" in stage for stage in few)
    assert len(result.entries) == 1 + composed.FINALISTS
    plain = next(each for each in result.entries if each.cell.recipe == "rtn")
    assert result.chosen.error < 0.8 * plain.error
    assert all(scheme_of(each.cell.recipe, "w4a4").calibrated for each in result.entries)


@pytest.mark.slow
def test_auto_is_deterministic_resumes_and_is_no_worse_than_its_table_on_images_it_has_not_seen(tmp_path):
    encoder = small.encoder("clip")
    images, unseen = np.asarray(small.images(64, seed=1)), np.asarray(small.images(64, seed=2))
    config = AutoConfig(bits=("w6a6",), recipes=("rtn", "asymmetric", "smoothquant"), registers=False)
    first, again = (auto(encoder, images, Workdir(tmp_path, Observer()), config) for _ in range(2))
    assert again.chosen == first.chosen == first.entries[0]
    jax.tree.map(np.testing.assert_array_equal, first.encoder.params, again.encoder.params)
    reference = features_of(encoder, unseen)
    held_back = {
        entry.name: label_free_error(
            features_of(entry.cell.encoder(encoder, lambda: halves(images, 0)[0], None), unseen), reference
        )
        for entry in first.entries
    }
    assert held_back[first.chosen.name] <= 1.02 * min(held_back.values())  # 64 images do not tell 2 percent apart
    assert {entry.cell.recipe for entry in first.entries} == set(config.recipes)


@pytest.mark.slow
def test_auto_leaves_measured_scales_out_where_only_static_ones_will_do(tmp_path):
    config = AutoConfig(recipes=("rtn", "token"), registers=False, static_only=True)
    result = auto(small.encoder("clip"), IMAGES, Workdir(tmp_path, Observer()), config)
    assert [entry.cell.recipe for entry in result.entries] == ["rtn"]
    with pytest.raises(UserError, match="at least 1"):
        AutoConfig(max_cost=0.5)
    with pytest.raises(UserError, match="at least 4 reference images"):
        halves(IMAGES[:2], 0)
