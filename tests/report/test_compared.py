"""The page of a comparison: every recipe stands there, names never cover one another, ties are marked as ties."""

from __future__ import annotations

import re

import numpy as np
import pytest

from regcache_jax.report import plots
from regcache_jax.report.compared import LINE, Tried, compared_page, error_over_cost, names_apart

ENTRIES = [
    Tried("rtn", False, 1.0, 0.5, 0.02, 0.9, 0.7, True, False),
    Tried("<gptq>", True, 1.2, 0.01, 0.02, 0.05, 0.86, True, True),
    Tried("token", False, 2.0, 0.009, 0.001, 0.04, 0.87, True, True),
    Tried("awq", False, None, None, None, None, None, False, False, "needs a norm"),
]


def test_every_recipe_has_a_line_with_its_figures_or_why_it_has_none():
    text = compared_page("small <b>", {"w8a8": ENTRIES}, "int8 multiply-adds")
    assert text.count("<tr") == 5 and "&lt;gptq&gt;" in text and "<gptq>" not in text and "small &lt;b&gt;" in text
    assert ">front, tied with the best<" in text and ">needs a norm<" in text and "86.0 %" in text


def test_ties_are_rings_bars_end_where_the_standard_error_does_and_cost_begins_at_zero():
    drawn = error_over_cost(ENTRIES, "cycles", "error over cost")
    assert drawn.count("<circle") == 3 and len(re.findall(r'<circle[^>]*fill="none"', drawn)) == 2
    bars = re.findall(r'd="M([\d.]+) ([\d.]+)V([\d.]+)"', drawn)
    y = plots.LogAxis([0.5, 0.01, 0.009])
    assert [float(bars[0][1]), float(bars[0][2])] == pytest.approx([y(0.52), y(0.48)], abs=0.06)
    assert len(bars) == 2  # of the second the error is smaller than its standard error
    right = plots.WIDTH - plots.RIGHT
    assert float(bars[0][0]) == pytest.approx((plots.LEFT + right) / 2, abs=0.06)  # half the largest cost


def test_names_keep_their_order_and_never_cover_one_another():
    tops = [*np.sort(np.random.default_rng(0).uniform(20, 40, 12)).tolist(), 250.0, 255.0, 257.9]
    found = names_apart(tops, 300)
    assert (np.diff(found) >= LINE - 1e-9).all() and found[0] >= 0 and found[-1] <= 300 - plots.BOTTOM


def test_bits_without_any_figure_have_a_table_alone():
    text = compared_page("small", {"w4a4": ENTRIES[3:]}, "cycles")
    assert "<svg" not in text and "needs a norm" in text
