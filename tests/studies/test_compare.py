from __future__ import annotations

import csv
import json

import jax
import numpy as np
import pytest
import small_encoders as small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.quantization.quantize import quantize
from regcache_jax.studies import grid
from regcache_jax.studies.auto import AutoConfig, auto, choose, halves
from regcache_jax.studies.cost import cost
from regcache_jax.studies.grid import (
    Entry,
    compare,
    features_of,
    label_free_error,
    markdown,
    pareto,
    write_tables,
)
from regcache_jax.studies.recipes import RECIPES, scheme_of

IMAGES = np.asarray(small.images(32))
GRID = {"recipes": ("rtn", "token"), "bits": ("w8a8", "w4a4")}


def run(out, **options):
    encoder = small.encoder("clip")
    return compare(
        encoder, IMAGES[:16], IMAGES[16:], out, plans={"w8a8": small.plan(1)},
        evaluate=lambda features: {"acc1": 0.5}, **{**GRID, **options},
    )  # fmt: skip


@pytest.mark.slow
def test_the_grid_has_every_cell_and_resumes(tmp_path, monkeypatch):
    entries = run(tmp_path)
    assert [entry.name for entry in entries] == [
        "w8a8-rtn", "w8a8-rtn-registers", "w8a8-token", "w8a8-token-registers", "w4a4-rtn", "w4a4-token",
    ]  # fmt: skip
    by_name = {entry.name: entry for entry in entries}
    assert by_name["w8a8-rtn"].error < by_name["w4a4-rtn"].error
    encoder = small.encoder("clip")
    reference = features_of(encoder, IMAGES[16:])
    direct = label_free_error(features_of(quantize(encoder, IMAGES[:16], Scheme()), IMAGES[16:]), reference)
    assert by_name["w8a8-rtn"].error == pytest.approx(direct, rel=1e-4)
    (tmp_path / "entries" / "w8a8-token.json").unlink()
    tried = []
    original = grid._try
    monkeypatch.setattr(grid, "_try", lambda *args: tried.append(args[1].name) or original(*args))
    again = run(tmp_path)
    assert tried == ["w8a8-token"]
    assert [(e.name, e.error) for e in again] == [(e.name, e.error) for e in entries]
    with pytest.raises(UserError, match="another comparison"):
        compare(encoder, IMAGES[:8], IMAGES[16:], tmp_path, plans={}, **GRID)
    with pytest.raises(UserError, match="or costs differ"):
        run(tmp_path, cost_unit="cycles")


@pytest.mark.slow
def test_an_entry_that_cannot_be_says_why(tmp_path):
    (plain, faulty) = run(tmp_path, recipes=("rotation",), bits=("w8a8",))
    assert plain.fault is None and "search for a plan on the rotated encoder" in faulty.fault
    assert faulty.error is None


@pytest.mark.slow
def test_a_cost_that_nobody_knows_is_noted_beside_the_error(tmp_path):
    def compiler(encoder):
        raise UserError("the compiler gave no answer")

    (entry,) = run(tmp_path, recipes=("token",), bits=("w4a4",), cost_of=compiler)
    assert entry.error is not None and (entry.cost, entry.note) == (None, "cost unknown: the compiler gave no answer")
    assert pareto([entry]) == []


@pytest.mark.slow
def test_tables_are_written_in_clip_benchmarks_keys(tmp_path):
    entries = [
        Entry("rtn", "w8a8", False, 0.1, 10.0, {"acc1": 0.5}),
        Entry("rtn", "w8a8", True, 0.01, 11.0, {"acc1": 0.75}),
        Entry("rotation", "w8a8", True, fault="cannot"),
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
        Entry("a", "w8a8", False, 0.5, 1.0),
        Entry("b", "w8a8", False, 0.6, 2.0),
        Entry("c", "w8a8", False, 0.1, 3.0),
    ]
    assert [entry.recipe for entry in pareto([*points, Entry("d", "w8a8", False, fault="x")])] == ["a", "c"]


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
    with pytest.raises(UserError, match="unknown recipe"):
        scheme_of("magic", "w8a8")


def test_auto_takes_the_least_error_that_the_limit_allows():
    entries = [
        Entry("a", "w8a8", False, 0.5, 1.0),
        Entry("b", "w8a8", False, 0.1, 3.0),
        Entry("c", "w8a8", False, 0.3, 1.05),
    ]
    assert choose(entries, None).recipe == "b"
    assert choose(entries, 1.1).recipe == "c"
    assert choose(entries, 1.0).recipe == "a"
    unknown = [Entry("d", "w8a8", False, 0.01, note="cost unknown: no compiler")]
    assert choose([*entries, *unknown], None).recipe == "d"
    assert choose([*entries, *unknown], 1.1).recipe == "c"
    with pytest.raises(UserError, match="cost is known, so none can be held to a limit: cost unknown: no compiler"):
        choose(unknown, 1.1)
    with pytest.raises(UserError, match="nothing could be tried: broken"):
        choose([Entry("a", "w8a8", False, fault="broken")], None)


@pytest.mark.slow
def test_auto_is_deterministic_resumes_and_is_no_worse_than_its_table_on_images_it_has_not_seen(tmp_path):
    encoder = small.encoder("clip")
    images, unseen = np.asarray(small.images(64, seed=1)), np.asarray(small.images(64, seed=2))
    config = AutoConfig(bits=("w6a6",), recipes=("rtn", "asymmetric", "smoothquant"), registers=False)
    first = auto(encoder, images, tmp_path, config)
    again = auto(encoder, images, tmp_path, config)
    assert again.chosen == first.chosen == first.entries[0]
    jax.tree.map(np.testing.assert_array_equal, first.encoder.params, again.encoder.params)
    reference = features_of(encoder, unseen)
    held_back = {
        entry.name: label_free_error(
            features_of(grid.quantize_entry(encoder, entry, halves(images, 0)[0], None), unseen), reference
        )
        for entry in first.entries
    }
    assert held_back[first.chosen.name] <= 1.02 * min(held_back.values())  # 64 images do not tell 2 percent apart
    assert {entry.recipe for entry in first.entries} == set(config.recipes)


@pytest.mark.slow
def test_auto_leaves_measured_scales_out_where_only_static_ones_will_do(tmp_path):
    config = AutoConfig(recipes=("rtn", "token"), registers=False, static_only=True)
    result = auto(small.encoder("clip"), IMAGES, tmp_path, config)
    assert [entry.recipe for entry in result.entries] == ["rtn"]
    with pytest.raises(UserError, match="at least 1"):
        auto(small.encoder("clip"), IMAGES, tmp_path, AutoConfig(max_cost=0.5))
    with pytest.raises(UserError, match="at least 4 reference images"):
        halves(IMAGES[:2], 0)
