import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from streaming import check_memory_does_not_grow

import regcache_jax as rc
from regcache_jax.core.scheme import SITES
from regcache_jax.data.cut import cut
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.vision import image_features
from regcache_jax.quantization.methods.folding import with_blocks
from regcache_jax.registers import inspect as inspection
from regcache_jax.registers.inspect import GROUPS, PERCENTILES, PLACES
from regcache_jax.registers.kinds import KINDS
from regcache_jax.registers.sensitivity import most_sensitive
from regcache_jax.registers.sinks import find_sinks, sinks_of
from regcache_jax.registers.verdict import ADVICE


@pytest.fixture(scope="module")
def profile(encoder, images):
    return rc.inspect(encoder, images, batch_size=4)


@pytest.mark.slow
def test_norms_are_those_of_every_site_with_token_groups_apart(encoder, images, profile):
    collect = {place: lambda trace, place=place: getattr(trace, place) for place in PLACES}
    seen = image_features(
        encoder.params.image, jax.numpy.asarray(images), encoder.spec.image, collect=collect
    ).collected
    tokens = {"class": slice(0, 1), "register": slice(1, 2), "patch": slice(2, None)}
    for p, place in enumerate(PLACES):
        array = np.asarray(seen[place])
        norms = np.abs(array.reshape(*array.shape[:3], -1)).max(axis=-1)
        np.testing.assert_allclose(profile.position_maximum[p], norms.max(axis=1), rtol=1e-5)
        for g, group in enumerate(GROUPS):
            own = norms[:, :, tokens[group]].reshape(3, -1)
            np.testing.assert_allclose(profile.maximum[p, :, g], own.max(axis=1), rtol=1e-5)
            # a bin is 6 % wide and its middle is given; the median of few values may also fall a value beside
            near = np.quantile(own, [0.4, 0.6], axis=1) * [[0.94], [1.06]]
            assert (near[0] <= profile.median[p, :, g]).all() and (profile.median[p, :, g] <= near[1]).all()
            tail = np.quantile(own, np.array(PERCENTILES) / 100, axis=1, method="inverted_cdf").T
            np.testing.assert_allclose(profile.percentile[p, :, g], tail, rtol=0.04)  # half a bin


@pytest.mark.slow
def test_a_profile_does_not_depend_on_how_the_set_is_cut_into_batches(encoder, images, profile):
    streamed = rc.inspect(encoder, cut(images, 3))
    assert streamed.num_images == 7
    for field in dataclasses.fields(profile):
        if field.name not in ("median", "percentile"):  # a value at the edge of a bin may fall on either side
            one, other = getattr(profile, field.name), getattr(streamed, field.name)
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=field.name)


def test_a_profile_and_its_verdict_are_plain_json(profile):
    again = json.loads(json.dumps(profile.to_json()))
    assert again["places"] == list(PLACES) and np.shape(again["maximum"]) == (5, 3, 3)
    assert json.loads(json.dumps(rc.judge(profile).to_json()))["findings"][0]["kind"] == "none"


@pytest.mark.slow
def test_an_inspection_keeps_no_more_of_a_long_set_than_of_a_short_one(encoder, images, monkeypatch):
    monkeypatch.setattr(inspection, "KEPT_IMAGES", 14)  # two batches
    check_memory_does_not_grow(lambda batches: rc.inspect(encoder, batches), images)


def test_every_kind_of_outlier_has_its_advice():
    assert set(ADVICE) == set(KINDS)


@pytest.mark.slow
def test_sinks_draw_attention_and_point_the_same_way_in_every_image():
    planted = rc.plant(["patch sinks"], num_images=16)
    after = planted.block + 1
    profile = rc.inspect(planted.encoder, planted.images)
    assert profile.sink_cosine[after] > 0.99 > 0.5 > profile.ordinary_cosine[after]
    assert profile.sinks_per_image[after] == 2 and profile.sinks_per_image[: planted.block + 1].sum() == 0
    np.testing.assert_allclose(profile.sink_share[after], planted.tokens.mean(axis=0))
    assert (find_sinks(planted.encoder, planted.images)[after] == planted.tokens).all()


def trace_with_a_sink(value):
    """One head, two ordinary patches and a sink that gets half of all attention; its value is `value`, theirs 1."""
    values = jnp.asarray([[[[1.0]], [[1.0]], [[value]]]])
    weights = jnp.broadcast_to(jnp.asarray([0.25, 0.25, 0.5]), (1, 1, 3, 3))
    out = jnp.einsum("bhts,bshk->bthk", weights, values)
    rest = [jnp.zeros((1, 3, 1))] * 2
    return BlockTrace(
        jnp.asarray([[[1.0], [1.0], [50.0]]]), rest[0], values, values, values, weights, None, out, *rest, None
    )


@pytest.mark.parametrize(("value", "moved"), [(0.01, 0.005 / 0.505), (2.0, 1 / 1.5)])
def test_what_a_sink_carries_is_its_value_times_the_attention_that_it_draws(value, moved):
    found = sinks_of(trace_with_a_sink(value), 0)
    np.testing.assert_array_equal(found.sink, [[False, False, True]])
    np.testing.assert_allclose([found.drawn[0], found.value[0, 0], found.moved[0, 0]], [0.5, value, moved], rtol=1e-5)


def test_a_verdict_says_whether_sinks_are_null_or_broadcast(profile):
    def said(blocks, moved):
        sinks = np.array([block in blocks for block in range(3)], float)
        carrying = np.outer(sinks, [0.0, moved])
        return rc.judge(dataclasses.replace(profile, sinks_per_image=sinks, sink_moved=carrying)).carried

    assert said([], 0.0) is None
    assert said([1, 2], 0.02).startswith(
        "null sinks: in no head of blocks 1-2 are they more than 2.0% of what attention moves"
    )
    assert said([0, 2], 0.4).startswith(
        "broadcasting sinks in blocks 0, 2 (2 heads): up to 40% of what head 1 of block 0 moves"
    )


@pytest.mark.slow
def test_planted_sinks_are_null():
    planted = rc.plant(["patch sinks"], num_images=4)
    profile = rc.inspect(planted.encoder, planted.images)
    assert rc.judge(profile).carried.startswith("null sinks")
    assert profile.sink_moved[: planted.block + 1].max() == 0 and profile.sink_moved.shape == (6, 4)


@pytest.mark.slow
def test_a_plan_in_place_is_inspected_with_it(encoder, images, profile):
    blocks = encoder.spec.image.blocks
    rows = np.ones((blocks.num_blocks, 1, blocks.num_heads, blocks.head_dim), np.float32)
    plan = rc.make_plan(jax.numpy.asarray(rows), jax.numpy.asarray(rows), copies=10.0, start=1)
    changed = rc.inspect(encoder.with_plan(plan), images)
    np.testing.assert_allclose(changed.maximum[:, 0], profile.maximum[:, 0], rtol=1e-5)
    assert not np.allclose(changed.maximum[0, 2], profile.maximum[0, 2], rtol=1e-3)


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((0, 12, 12, 3), 0.0, "the reference set is empty"),
        ((2, 10, 12, 3), 0.0, r"takes preprocessed pictures \[n, 12, 12, 3\], got \[2, 10, 12, 3\]"),
        ((2, 12, 12, 3), np.nan, "picture 0 holds NaN or infinity"),
    ],
)
def test_a_bad_set_gets_one_message(encoder, shape, value, message):
    with pytest.raises(rc.UserError, match=message):
        rc.inspect(encoder, np.full(shape, value, np.float32))


def test_one_image_is_enough_to_inspect(encoder, images):
    assert rc.inspect(encoder, images[:1]).num_images == 1


def test_nan_in_the_weights_names_the_first_block_that_shows_it(encoder, images):
    blocks = encoder.params.image.blocks
    fc2 = blocks.mlp.fc2.replace(kernel=blocks.mlp.fc2.floats.at[1, 0, 0].set(np.nan))
    broken = with_blocks(encoder, blocks.with_layers({"fc2": fc2}))
    with pytest.raises(rc.UserError, match="token norms of block 2 are not finite"):
        rc.inspect(broken, images)


@pytest.mark.slow
def test_sensitivity_does_not_depend_on_batches_and_gives_a_drop_in_top1_with_labels(encoder, images):
    scheme = rc.Scheme(4, 4)
    whole, cut = (rc.sensitivity(encoder, images, scheme, batch_size=size) for size in (7, 3))
    assert whole.shape == (3, 4) and (whole > 0).all()
    np.testing.assert_allclose(whole, cut, rtol=0.05)  # a value at the edge of a step may round either way
    vectors = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
    drops = rc.sensitivity(encoder, images, scheme, labels=np.zeros(7, int), class_vectors=vectors, batch_size=7)
    assert (np.abs(drops) <= 1).all() and np.allclose(drops * 7, np.round(drops * 7))


@pytest.mark.slow
def test_sensitivity_with_a_plan_in_place_is_the_error_of_the_encoder_that_serves_it(encoder, images):
    blocks = encoder.spec.image.blocks
    rows = jnp.ones((blocks.num_blocks, 1, blocks.num_heads, blocks.head_dim))
    plan = rc.make_plan(rows, rows, copies=10.0, start=1, delete_block=1, delete_count=3)
    scheme, registered = rc.Scheme(4, 4), encoder.with_plan(plan)
    found, exact = rc.sensitivity(registered, images, scheme), rc.encode_image(registered, images)
    for chosen in (("fc2", 1), ("qkv", 2)):
        others = [cell for cell in itertools.product(SITES, range(blocks.num_blocks)) if cell != chosen]
        rounded = rc.encode_image(rc.quantize(encoder, images, scheme.keep_in_float(others), plan), images)
        error = jnp.square(exact - rounded).sum(axis=1).mean()
        np.testing.assert_allclose(
            found[chosen[1], SITES.index(chosen[0])], error, rtol=0.05
        )  # a value may round either way


def test_the_most_sensitive_cells_come_largest_first():
    errors = np.array([[0.1, 0.2, 0.3, 0.9], [0.2, 0.8, 0.0, 0.4]])
    assert most_sensitive(errors, 3) == [("fc2", 0), ("out", 1), ("fc2", 1)]
