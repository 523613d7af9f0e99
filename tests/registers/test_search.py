import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import small

import regcache_jax as rc
from regcache_jax.core.outputs import feature_errors, image_errors
from regcache_jax.core.scheme import SITES
from regcache_jax.registers.candidates import find_candidates
from regcache_jax.registers.inspect import find_sensitive_block
from regcache_jax.registers.outputs import outputs_of
from regcache_jax.registers.search.engine import Search
from regcache_jax.registers.search.margins import NEEDED
from regcache_jax.registers.search.parts import Draws, make_draws
from regcache_jax.registers.search.programs import compilations
from regcache_jax.registers.search.result import describe_plan
from regcache_jax.registers.search.space import Numbers, Space
from regcache_jax.registers.search.trial import Trials
from regcache_jax.studies.planted import plant, planted_spec

SPEC = planted_spec(width=64, num_blocks=4, num_heads=4, image_size=32, patch_size=8)
SCHEME = rc.Scheme(8, 8)
QUICK = rc.SearchConfig(copies=(6.0, 15.0), delete_counts=(0, 3), back=1, rounds=1, chunk=5)
SMALL = planted_spec(width=32, num_blocks=4, num_heads=2, image_size=16, patch_size=4)


def space(config=None, **changes):
    return Space(dataclasses.replace(config or rc.SearchConfig(), **changes), SPEC.image, 2)


@pytest.fixture(scope="module")
def planted():
    return plant(["patch sinks"], spec=SPEC, num_images=13)


@pytest.fixture(scope="module")
def found(planted):
    """One quick search (13 images in chunks of 5: the last chunk is short), and what it compiled."""
    before = compilations()
    result = rc.search(planted.encoder, planted.images, SCHEME, QUICK)
    return result, compilations() - before


# ---- the space -------------------------------------------------------------------------------------------------------


def test_the_grid_has_every_start_with_every_copies_and_count_and_deletion_alone():
    points = space().grid()
    assert len(points) == len(set(points)) == 3 * 4 * 3 + 3  # starts 0..2, four taus, three counts
    assert {point.start for point in points if point.stop > point.start} == {0, 1, 2}
    assert {point.delete_count for point in points if point.stop == point.start} == {0, 3, 8}


def test_moves_change_one_number_and_stay_in_the_space():
    best = Numbers(1, 4, 6.0, 2, 3)
    for point in space().moves(best):
        changed = [name for name, value in vars(point).items() if value != getattr(best, name)]
        assert len(changed) == 1, point
        assert 0 <= point.start < point.stop <= 4 and 0 < point.delete_count < 16 and point.delete_block in (1, 3, 2)


def test_aligned_deletion_leaves_whole_tiles_with_a_row_for_the_register():
    aligned = space(align=8)
    assert SPEC.image.num_tokens == 17 and aligned.delete_counts == (0, 2, 10)  # 17 - 2 + 1 = 16, 17 - 10 + 1 = 8
    assert {point.delete_count for point in aligned.grid()} == {0, 2, 10}
    steps = {point.delete_count for point in aligned.moves(Numbers(1, 4, 6.0, 2, 2))}
    assert steps == {0, 2, 10}


@pytest.mark.slow
def test_a_search_that_may_neither_move_nor_delete_ends_with_the_plan_that_does_nothing():
    quick = rc.SearchConfig(objective="patches", sensitive_block=0, copies=(1e-6,), draws=2, rounds=1, chunk=5)
    pictures = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)
    result = rc.search(small.encoder("tower"), pictures, SCHEME, quick)
    assert not result.plan.has_registers and int(result.plan.delete_count) == 0
    assert space(quick).moves(space(quick).nothing) == []


def test_rungs_grow_to_the_whole_set():
    assert space().rungs(16, 96) == [16, 32, 96]
    assert space().rungs(32, 192) == [32, 64, 192]
    assert space().rungs(8, 9) == [8, 9] and space().rungs(4, 4) == [4]


@pytest.mark.parametrize(
    ("changes", "block", "message"),
    [
        ({"delete_counts": (0, 16)}, 2, r"delete_counts must be 0..15 \(the encoder has 16 patches\), got 16"),
        ({}, 4, "sensitive_block must be 0..3, got 4"),
    ],
)
def test_a_space_that_the_encoder_does_not_have_is_refused(changes, block, message):
    with pytest.raises(rc.UserError, match=message):
        Space(rc.SearchConfig(**changes), SPEC.image, block)


# ---- trials ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trials(planted):
    return Trials(planted.encoder, planted.images, SCHEME, (1, 2, 3), make_draws(len(planted.images)), 5)


@pytest.mark.slow
def test_a_trial_from_the_middle_equals_quantising_the_whole_encoder(planted, found):
    plan = found[0].plan.replace(start=jax.numpy.int32(2))
    trials = Trials(planted.encoder, planted.images, SCHEME, (1, 2, 3), Draws(1, 5))  # one draw: of all images
    int8 = rc.quantize(planted.encoder, jax.numpy.asarray(planted.images), SCHEME, plan)
    float_features = rc.encode_image(planted.encoder, jax.numpy.asarray(planted.images))
    whole = feature_errors(
        np.asarray(rc.encode_image(int8, jax.numpy.asarray(planted.images))), np.asarray(float_features)
    )
    # another batch size may round a value at the edge of a step the other way
    np.testing.assert_allclose(trials.errors(plan), whole, rtol=0.1)
    np.testing.assert_allclose(trials.errors(plan).mean(), whole.mean(), rtol=0.02)


@pytest.mark.slow
def test_an_image_is_scored_under_scales_that_it_did_not_help_to_find(planted, trials, found):
    """The error of a draw's images is that of an encoder quantised on all the others."""
    plan, own = found[0].plan, trials.draws.of(np.arange(13))
    float_features = np.asarray(rc.encode_image(planted.encoder, jax.numpy.asarray(planted.images)))
    errors = trials.errors(plan)
    for draw, drawn in enumerate(trials.drawn_errors(plan)):
        np.testing.assert_array_equal(errors[own == draw], drawn)
        int8 = rc.quantize(planted.encoder, jax.numpy.asarray(planted.images[own != draw]), SCHEME, plan)
        features = np.asarray(rc.encode_image(int8, jax.numpy.asarray(planted.images[own == draw])))
        np.testing.assert_allclose(
            drawn.mean(), feature_errors(features, float_features[own == draw]).mean(), rtol=0.05
        )


@pytest.mark.slow
def test_a_picture_that_keeps_its_sinks_spoils_every_draw_but_its_own(planted, found):
    """One picture ten times as bright: nine of ten others are scored under scales that it stretched."""
    images = planted.images.copy()
    images[0] *= 10
    own = Trials(planted.encoder, images, SCHEME, (0, 1, 2, 3), make_draws(len(images)), 5)
    spoiled, calm = (
        own.errors(found[0].plan),
        Trials(planted.encoder, planted.images, SCHEME, (0, 1, 2, 3), make_draws(len(planted.images))).errors(
            found[0].plan
        ),
    )
    draw = own.draws.of(np.arange(13))
    assert np.median((spoiled / calm)[draw != draw[0]]) > 1.5 > np.median((spoiled / calm)[(draw == draw[0])][1:])


@pytest.mark.slow
def test_states_beyond_the_memory_limit_lie_on_disk_and_change_nothing(planted, trials, found):
    spilled = Trials(
        planted.encoder, planted.images, SCHEME, (1, 2, 3), make_draws(len(planted.images)), 5, memory_limit=1000
    )
    assert spilled.float_states.on_disk and spilled.quantized_states.on_disk and not trials.float_states.on_disk
    np.testing.assert_array_equal(spilled.errors(found[0].plan), trials.errors(found[0].plan))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["absmax", "percentile"])
def test_trials_calibrate_as_the_scheme_says_with_the_plan_in_place(planted, found, estimator):
    """Chunks of 4: the fourth has one image and three rows that fill it up, which no scale may know of."""
    scheme, plan = dataclasses.replace(SCHEME, estimator=estimator, percentile=99.0), found[0].plan
    own = Trials(planted.encoder, planted.images, scheme, (0, 1, 2, 3), make_draws(len(planted.images)), 4)
    scales = own.ranges(plan).scales(scheme)
    int8 = rc.quantize(planted.encoder, jax.numpy.asarray(planted.images), scheme, plan)
    for site in SITES:
        scale = int8.params.image.blocks.grids.of(site).scale
        # one value at the edge of a bin may fall beside it: a bin is 1/2048 of a power of two above the largest value
        np.testing.assert_allclose(scales[site], scale, rtol=1e-5 if estimator == "absmax" else 5e-3)


def part_of_the_set(planted, plan, batch, images=None):
    """The errors of the first 12 of 13 pictures (three of each draw), and what they cost."""
    images = planted.images if images is None else images
    own = Trials(planted.encoder, images, SCHEME, (1, 2, 3), make_draws(13), batch)
    before = own.block_flops
    errors = np.concatenate(list(own.drawn_errors(plan, 12)))
    return errors, own.block_flops - before, own


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "runs"), [(4, 2), (2, 1)], ids=["with registers", "without"])
def test_on_a_part_of_the_set_one_run_gives_the_errors_of_two(planted, found, stop, runs):
    """A batch that holds three pictures of each draw runs them together; the run's own extremes are those of integer blocks."""
    plan = found[0].plan.replace(start=jax.numpy.int32(2), stop=jax.numpy.int32(stop))
    (one, cost_of_one, own), (two, cost_of_two, apart) = (part_of_the_set(planted, plan, batch) for batch in (12, 5))
    assert own.in_one_run and not apart.in_one_run and own.chunk == apart.chunk == 3
    assert runs * cost_of_one == cost_of_two  # ranges without a plan are there already
    np.testing.assert_allclose(one.mean(), two.mean(), rtol=0.05)
    assert (np.abs(np.log2(one / two)) < 1).all()  # under other scales a picture's values are rounded another way
    larger, _, _ = part_of_the_set(planted, plan, 32)
    np.testing.assert_array_equal(larger, one)


@pytest.mark.slow
def test_in_one_run_a_bright_picture_spoils_every_draw_but_its_own(planted, found):
    images = planted.images.copy()
    images[0] *= 10
    calm, spoiled = (part_of_the_set(planted, found[0].plan, 12, each)[0] for each in (planted.images, images))
    assert np.median((spoiled / calm)[3:]) > 1.5 > (spoiled / calm)[1:3].max()  # of its draw, the two others


@pytest.mark.slow
def test_histograms_and_small_batches_take_two_runs_and_measured_scales_none_for_calibration(planted):
    draws = make_draws(13)
    ways = [
        (SCHEME, 12),
        (SCHEME, 11),
        (dataclasses.replace(SCHEME, estimator="percentile"), 12),
        (rc.Scheme(8, 8, "token"), 12),
    ]
    made = [Trials(planted.encoder, planted.images, scheme, (1,), draws, batch) for scheme, batch in ways]
    assert [trials.in_one_run for trials in made] == [True, False, False, False]


@pytest.mark.slow
def test_blocks_before_a_plan_are_not_run_again(trials, found):
    plan = found[0].plan

    def cost(start):
        before = trials.block_flops
        trials.errors(plan.replace(start=jax.numpy.int32(start)))
        return trials.block_flops - before

    assert cost(2) * 3 == cost(1) * 2  # blocks 2, 3 against 1, 2, 3
    with pytest.raises(ValueError, match="begins at block 0 is before the first entry 1"):
        cost(0)


@pytest.mark.slow
def test_doing_nothing_costs_no_run_and_errs_as_the_quantised_encoder_does(planted):
    own = Trials(planted.encoder, planted.images, SCHEME, (1, 2, 3), Draws(1, 5))
    nothing = rc.make_plan(np.zeros((4, 1, 4, 16)), np.zeros((4, 1, 4, 16)), start=2, stop=2)
    before = own.block_flops
    errors = own.errors(nothing)
    assert own.block_flops == before and not own.exceeds(nothing, own.calibrated(nothing)[0])
    int8, exact = (
        np.asarray(rc.encode_image(each, planted.images))
        for each in (rc.quantize(planted.encoder, planted.images, SCHEME), planted.encoder)
    )
    np.testing.assert_allclose(errors, feature_errors(int8, exact), rtol=0.1)  # values at the edge of a step


@pytest.mark.slow
def test_a_run_that_shows_a_sink_ends_at_the_first_pictures_that_do(trials, found):
    plan, scales = found[0].plan, trials.calibrated(found[0].plan)[0]

    def cost(share):
        before = trials.block_flops
        answer = trials.exceeds(plan, {site: share * scale for site, scale in scales.items()})
        return answer, trials.block_flops - before

    (low, first), (high, whole) = cost(0.5), cost(1.01)
    assert low and not high and 0 < first < whole


@pytest.mark.slow
def test_the_float_run_of_a_search_finds_the_candidates_that_a_run_of_their_own_finds(planted):
    engine = Search(planted.encoder, planted.images, SCHEME, QUICK)
    alone = find_candidates(planted.encoder, planted.images, engine.space.starts, count=len(planted.images))
    for ours, theirs in zip(engine.candidates, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)  # other batches
    assert (
        find_sensitive_block(planted.encoder, planted.images)
        == rc.inspect(planted.encoder, planted.images).sensitive_block
    )


# ---- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_registers_are_found_for_planted_sinks_with_seven_programs(found):
    result, programs = found
    assert result.helps and result.complete and result.gain > 0.8
    assert result.jitter < result.baseline_error - result.error
    # states, ranges, features (of a chunk, and of a round of all draws), held-out pictures; whatever the plans
    assert programs == result.compilations <= 7
    assert result.spare >= NEEDED and not result.remarks()


@pytest.mark.slow
def test_the_plan_fits_the_encoder_and_holds_only_registers_that_are_seen(planted, found):
    plan = found[0].plan
    assert plan.key.shape[1] == found[0].numbers.num_registers
    assert planted.encoder.with_plan(plan).schedule.start == found[0].numbers.start


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"products": ("qk", "pv"), "method": "gptq"}], ids=["same", "recipe"])
def test_the_same_search_ends_with_the_same_plan_whatever_recipe_comes_later(planted, found, more):
    again = rc.search(planted.encoder, planted.images, dataclasses.replace(SCHEME, **more), QUICK)
    assert again.trials == found[0].trials
    for one, other in zip(jax.tree.leaves(again.plan), jax.tree.leaves(found[0].plan), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_every_trial_is_cheaper_than_the_whole_set(found):
    result, _ = found
    assert len({(str(row["numbers"]), row["images"]) for row in result.trials}) == len(result.trials)
    assert sum(row["block_flops"] for row in result.trials) < result.block_flops
    assert {row["images"] for row in result.trials} == {8, 10}  # 3 of 13 verify


@pytest.mark.slow
@pytest.mark.parametrize(
    "budget",
    [{"max_trials": 4}, {"max_minutes": 1e-9}, {"max_block_flops": 1.0}],
    ids=lambda budget: next(iter(budget)),
)
def test_a_spent_budget_ends_the_search_with_what_all_images_have_scored(planted, budget):
    result = rc.search(planted.encoder, planted.images, SCHEME, dataclasses.replace(QUICK, **budget))
    assert not result.complete and len(result.trials) <= 6
    assert result.error <= result.baseline_error and "budget" in result.sentence()


@pytest.mark.slow
def test_an_encoder_without_outliers_gets_no_plan():
    plain = plant([], spec=SMALL, num_images=24)
    result = rc.search(plain.encoder, plain.images, SCHEME, dataclasses.replace(QUICK, copies=(6.0,), chunk=6))
    assert not result.helps and not result.plan.has_registers and int(result.plan.delete_count) == 0
    assert result.error == result.baseline_error and "gain nothing" in result.sentence()


@pytest.mark.slow
def test_accuracy_is_an_objective_where_labels_and_class_vectors_are_given(planted):
    vectors = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    reference = np.asarray(rc.encode_image(planted.encoder, jax.numpy.asarray(planted.images)))
    labels = np.argmax(reference @ vectors.T, axis=1)  # float is right everywhere
    config = dataclasses.replace(QUICK, objective="accuracy", max_trials=5)
    result = rc.search(planted.encoder, planted.images, SCHEME, config, labels=labels, class_vectors=vectors)
    assert all(round(error * 4, 2) % 1 == 0 for row in result.trials for error in row["draws"])  # of 2 or 4 images
    assert 0 <= result.error <= result.baseline_error <= 1
    with pytest.raises(rc.UserError, match="goes with labels and class vectors"):
        rc.search(planted.encoder, planted.images, SCHEME, config)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["patches", "both"])
def test_errors_of_patches_in_a_trial_are_those_of_the_encoder_that_serves_deleted_places_filled_in(
    planted, found, objective
):
    plan = found[0].plan.replace(
        start=jax.numpy.int32(2), delete_block=jax.numpy.int32(3), delete_count=jax.numpy.int32(2)
    )
    trials = Trials(planted.encoder, planted.images, SCHEME, (1, 2, 3), Draws(1, 5), objective=objective)
    int8 = rc.quantize(planted.encoder, jax.numpy.asarray(planted.images), SCHEME, plan)
    exact, served = (outputs_of(each, planted.images, patches=True) for each in (planted.encoder, int8))
    np.testing.assert_allclose(trials.errors(plan), image_errors(objective, served, exact), rtol=0.05)


@pytest.mark.slow
def test_a_search_for_patches_deletes_nothing_unless_it_is_asked_to_and_then_says_what_that_costs(planted):
    config = dataclasses.replace(QUICK, objective="patches", delete_counts=None, rounds=0)
    before = compilations()
    result = rc.search(planted.encoder, planted.images, SCHEME, config)
    assert compilations() - before <= 6 and result.objective == "patches"
    assert {row["numbers"]["delete_count"] for row in result.trials} == {0}
    asked = rc.search(planted.encoder, planted.images, SCHEME, dataclasses.replace(config, delete_counts=(0, 3)))
    assert {row["numbers"]["delete_count"] for row in asked.trials} == {0, 3}
    shown = dataclasses.replace(
        asked, helps=True, numbers=dataclasses.replace(asked.numbers, delete_count=3), moved=0.3, moved_by_deletion=0.1
    )
    assert any("deleting 3 patches" in line and "by 0.1 of these 0.3" in line for line in shown.remarks())


def first_channel(reference, found):
    return np.abs(found.pooled[:, 0] - reference.pooled[:, 0])


@pytest.mark.slow
def test_a_function_is_an_objective_and_the_plan_file_names_it(planted):
    config = dataclasses.replace(QUICK, objective=first_channel, max_trials=3)
    result = rc.search(planted.encoder, planted.images, SCHEME, config)
    metadata = json.loads(json.dumps(describe_plan(result, planted.encoder, SCHEME, config, {})))
    assert metadata["objective"] == metadata["search"]["objective"] == f"{__name__}.first_channel"
    assert 0 < result.baseline_error < 0.5


@pytest.mark.slow
def test_a_search_with_several_registers_fills_them_up_to_one_shape(planted):
    engine = Search(planted.encoder, planted.images, SCHEME, dataclasses.replace(QUICK, registers=(1, 3)))
    one, three = (engine.padded(Numbers(2, 4, 6.0, 2, 0, count)) for count in (1, 3))
    assert [leaf.shape for leaf in jax.tree.leaves(one)] == [leaf.shape for leaf in jax.tree.leaves(three)]
    np.testing.assert_allclose(np.asarray(three.copies).sum(axis=-1), 6.0, rtol=1e-5)  # shares of the copies
    plain = engine.trials.errors(engine.plan(Numbers(2, 4, 6.0, 2, 0)))
    np.testing.assert_allclose(engine.trials.errors(one), plain, rtol=1e-5)  # rows nobody sees change nothing


SCRIPT = """
import sys, jax, regcache_jax as rc
from regcache_jax.registers.outputs import outputs_of
from regcache_jax.studies.planted import plant, planted_spec
assert len(jax.devices()) == int(sys.argv[1])
planted = plant(["patch sinks"], spec=planted_spec(64, 4, 4, 32, 8), num_images=13)
config = rc.SearchConfig(copies=(6.0, 15.0), delete_counts=(0, 3), back=1, rounds=1, chunk=5)
rc.save_plan(sys.argv[2], rc.search(planted.encoder, planted.images, rc.Scheme(8, 8), config).plan)
"""


@pytest.mark.slow
def test_one_and_eight_devices_end_with_the_same_plan_byte_for_byte(tmp_path, monkeypatch):
    files, two = [], os.environ["XLA_FLAGS"]
    for devices in (1, 8):
        monkeypatch.setenv("XLA_FLAGS", two.replace("device_count=2", f"device_count={devices}"))
        files.append(tmp_path / f"{devices}.safetensors")
        subprocess.run([sys.executable, "-c", SCRIPT, str(devices), str(files[-1])], check=True)
    assert files[0].read_bytes() == files[1].read_bytes()
