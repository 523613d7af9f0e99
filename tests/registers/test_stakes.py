"""What an outlier costs: simulated integers against the real ones, and each planted outlier's share of the error."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import regcache_jax as rc
from regcache_jax.core.outputs import Answers
from regcache_jax.core.spec import Protected
from regcache_jax.registers.kinds import OUTLIERS
from regcache_jax.registers.remedies import GROUP, SMOOTH, TOKEN, UNSEARCHED, advised, try_remedies
from regcache_jax.registers.stakes import Seen, Stakes, measure_stakes, scales_apart
from regcache_jax.studies.grid import features_of, label_free_error
from regcache_jax.studies.planted import plant, planted_spec

SPEC, SCHEME = planted_spec(32, 4, 2, 16, 4), rc.Scheme(8, 8)
SINKS, CLASS, _, CHANNEL = OUTLIERS


def measured(kinds, **more):
    planted = plant(kinds, spec=SPEC, num_images=8, **more)
    profile = rc.inspect(planted.encoder, planted.images)
    return planted, profile, measure_stakes(planted.encoder, planted.images, SCHEME, profile)


@pytest.fixture(scope="module")
def sinks():
    return measured([SINKS])


@pytest.mark.slow
def test_simulated_integers_have_the_error_of_the_real_ones(sinks):
    planted, _, stakes = sinks
    int8 = rc.quantize(planted.encoder, planted.images, SCHEME)
    real = label_free_error(features_of(int8, planted.images), features_of(planted.encoder, planted.images))
    np.testing.assert_allclose(stakes.plain, real, rtol=0.05)  # values at the edge of a step


@pytest.mark.slow
def test_sinks_that_were_planted_are_worth_what_the_encoder_without_them_does_not_lose(sinks):
    planted, profile, stakes = sinks
    _, _, plain = measured([])
    np.testing.assert_allclose(stakes.without[SINKS], plain.plain, rtol=0.3)
    assert stakes.worth(SINKS) == stakes.worth_last(SINKS) > 0.5
    (finding,) = rc.judge(profile, stakes=stakes).findings
    assert f"worth {stakes.worth(SINKS):.0%} of the plain error: prefix registers" in finding.sentence()
    remedies = try_remedies(planted.encoder, planted.images, SCHEME, profile)
    assert set(remedies) == {GROUP, TOKEN, SMOOTH, UNSEARCHED}
    assert remedies[UNSEARCHED] < 0.5 * stakes.plain
    (finding,) = rc.judge(profile, stakes=dataclasses.replace(stakes, remedies=remedies)).findings
    best = min(remedies, key=remedies.get)
    assert f"remedies that were tried, {best} " in finding.sentence() and "prefix registers" not in finding.sentence()


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({}, None),
        ({UNSEARCHED: 0.02, SMOOTH: 0.01}, "SmoothQuant (`--method smoothquant`) leaves 0.01"),
        (
            {TOKEN: 0.001, UNSEARCHED: 0.02, GROUP: 0.03},
            "a scale a token (`--activations token`, measured as it runs) leaves 0.001, the best with fixed scales: "
            "registers (not searched) (`regcache search` finds better ones) leaves 0.02",
        ),
        ({SMOOTH: 0.2, TOKEN: 0.1}, "none of the remedies that were tried takes anything away"),
    ],
    ids=["none tried", "static", "as it runs", "none helps"],
)
def test_advice_follows_what_remedies_leave(left, said):
    found = advised(left, 0.1)
    assert found == said or (said is not None and found == f"of the remedies that were tried, {said}")


@pytest.mark.slow
def test_without_outliers_nothing_is_at_stake_and_no_sink_begins():
    _, profile, stakes = measured([])
    verdict = rc.judge(profile, stakes=stakes)
    assert stakes.without == {} and stakes.without_all == stakes.plain
    assert verdict.kinds == ("none",) and "sinks begin" not in verdict.where and "no sinks" in verdict.where
    assert "no outlier has a part in it" in stakes.sentences()[0] or "little to take away" in stakes.sentences()[0]


@pytest.mark.slow
def test_a_class_token_below_the_line_is_seen_and_counts_by_what_it_costs():
    _, profile, stakes = measured([CLASS], firing=10.0)
    unmeasured = rc.judge(profile)
    assert unmeasured.kinds == ("none",)
    assert [finding.kind for finding in unmeasured.findings] == [CLASS, "none"]
    assert "up to 7.47 x typical (below the line of 10 x)" in unmeasured.findings[0].sentence()
    costly = Stakes(8, "w8a8", "pooled", 0.01, {CLASS: 0.008}, {CLASS: 0.01}, 0.008)
    assert rc.judge(profile, stakes=costly).kinds == (CLASS,)
    cheap = Stakes(8, "w8a8", "pooled", 0.01, {CLASS: 0.0097}, {CLASS: 0.01}, 0.0097)
    sentence = rc.judge(profile, stakes=cheap).findings[0].sentence()
    assert "worth 3% of the plain error: little to take away" in sentence
    assert stakes.worth(CLASS) is not None and json.loads(json.dumps(rc.judge(profile, stakes=stakes).to_json()))


@pytest.mark.slow
def test_outliers_that_hold_the_same_scale_are_worth_something_once_the_others_are_gone():
    _, profile, stakes = measured([SINKS, CLASS])
    assert set(stakes.without) == set(stakes.only) == {SINKS, CLASS}
    assert stakes.without_all < min(stakes.only.values())
    findings = rc.judge(profile, stakes=stakes).findings
    assert findings[0].worth < 0.05 < 0.1 < findings[0].worth_last  # the class token holds the scale
    assert "where all other outliers are gone" in findings[0].sentence()


def test_a_scale_for_each_kind_and_one_for_all_others():
    others = np.array([[[9.0, 2.0, 7.0, 1.0]]])  # class token, three patches; the second is a sink
    channel = np.array([[[1.0, 5.0, 1.0, 1.0]]])
    seen = Seen(others, channel, np.array([[[False, False, True, False]]]))

    def tokens(kinds, channels=-1):
        found = scales_apart(seen, np.array([channels]), kinds, Protected(1, 0), 8)
        return np.asarray(found.token)[0, 0] * 127, float(found.channel[0]) * 127, int(found.outlying[0])

    np.testing.assert_allclose(tokens(())[0], 9)
    np.testing.assert_allclose(tokens((CLASS,))[0], [9, 7, 7, 7])
    np.testing.assert_allclose(tokens((SINKS, CLASS))[0], [9, 5, 7, 5])
    apart, own, outlying = tokens((SINKS, CLASS, CHANNEL), channels=3)
    np.testing.assert_allclose(apart, [9, 2, 7, 2])
    assert own == pytest.approx(5) and outlying == 3
    assert tokens((CHANNEL,))[2] == -1  # no channel stands out in this block


@pytest.mark.slow
def test_points_of_top1_are_those_of_the_simulated_integers():
    planted = plant([SINKS], spec=SPEC, num_images=6)
    profile = rc.inspect(planted.encoder, planted.images)
    features = np.asarray(rc.encode_image(planted.encoder, jnp.asarray(planted.images)))
    answers = Answers(np.arange(6), features)  # every picture is its own class: float is right everywhere
    stakes = measure_stakes(planted.encoder, planted.images, SCHEME, profile, objective="accuracy", answers=answers)
    assert stakes.top1[0] == 1.0 >= stakes.top1[1] and stakes.objective == "pooled"
    assert "points of top-1" in stakes.sentences()[0]


def test_stakes_are_of_the_float_encoder(sinks):
    planted, profile, _ = sinks
    int8 = rc.quantize(planted.encoder, None, rc.Scheme(8, 8, "token"))
    with pytest.raises(rc.UserError, match="stakes are of the float encoder"):
        measure_stakes(int8, planted.images, SCHEME, profile)
