"""Estimates before long work: what they grow with, what bounds them, and that commands say them."""

from __future__ import annotations

import pytest
import small

import regcache_jax as rc
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.models.folder import save
from regcache_jax.studies import pace
from regcache_jax.studies.auto import seconds_of
from regcache_jax.studies.pace import Pace, forecast
from regcache_jax.studies.recipes import AutoConfig


@pytest.fixture
def slow(monkeypatch):
    """An encoder that takes a second a picture."""
    monkeypatch.setattr(pace, "seconds_a_picture", lambda encoder: 2.0)  # tests run on two devices
    return Pace(small.encoder("siglip"))


def test_work_grows_with_pictures_trials_and_cells_and_budgets_bound_it(slow):
    assert slow.passes(100, programs=0) == pytest.approx(100)
    assert slow.passes(200) > slow.passes(100) and slow.sensitivity(20) > slow.sensitivity(10)
    assert slow.cells(6, 10, 10) == pytest.approx(6 * slow.cells(1, 10, 10))
    whole = slow.search(256, SearchConfig())
    assert slow.search(256, SearchConfig(max_trials=8)) < whole / 3
    assert slow.search(256, SearchConfig(max_minutes=1.0)) == 60 < whole
    assert seconds_of(small.encoder("siglip"), 64, AutoConfig(registers=False)) < seconds_of(
        small.encoder("siglip"), 64, AutoConfig()
    )


def test_long_work_is_announced_in_minutes_or_hours_and_short_work_not():
    assert forecast(30, "that is all") is None
    assert forecast(12 * 60, "--max-minutes bounds it") == "12 to 36 minutes on 2 x cpu; --max-minutes bounds it"
    assert forecast(4 * 3600, "it goes on where it stopped").startswith("4 to 12 hours on ")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
def test_a_picture_takes_a_while_in_float_and_in_integers(kind):
    encoder = small.encoder(kind)
    int8 = rc.quantize(encoder, small.images(2), rc.Scheme(8, 8))
    assert 0 < pace.seconds_a_picture(encoder) < 10 and 0 < pace.seconds_a_picture(int8) < 10


@pytest.mark.slow
def test_a_command_says_before_it_begins_how_long_it_will_take_and_what_bounds_that(regcache, slow, tmp_path):
    model = save(tmp_path / "model", small.encoder("siglip"))
    short = ("--dataset", "dummy", "--limit", "40", "--max-trials", "2", "--out", tmp_path / "plan.safetensors")
    status, _, err = regcache("search", model, *short)
    assert status == 0 and "3 to 8 minutes on 2 x cpu; --max-minutes bounds it\nsearching ...\n" in err, err
