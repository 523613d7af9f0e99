"""The recipe of the bundled encoder: its circuit, its losses, and a few steps of every phase."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import make_plan
from regcache_jax.core.sites import Dense, Parameters
from regcache_jax.core.spec import BlockSpec
from regcache_jax.data.emoji import render
from regcache_jax.demo.bundled import SPEC, bundled_model
from regcache_jax.demo.recipe import circuit, losses
from regcache_jax.demo.recipe.augment import batches, make_batch
from regcache_jax.demo.recipe.export import exported
from regcache_jax.demo.recipe.forward import Prefix, Seen, observe
from regcache_jax.demo.recipe.phases import PHASES, Phase, shortened
from regcache_jax.demo.recipe.run import Recipe, cook
from regcache_jax.demo.recipe.train import begin_phase, confusion, initial_state, name_ids, prepare, run_phase
from regcache_jax.encoders.encoder import Encoder, encode_image, normalize
from regcache_jax.encoders.parameters import parameter_shapes
from regcache_jax.encoders.vision import image_features
from regcache_jax.models import folder as checkpoints

BLOCKS = BlockSpec(width=32, num_blocks=7, num_heads=4, mlp_width=48, activation="gelu_tanh", norm_eps=1e-6)
SMALL = dataclasses.replace(
    SPEC,
    image=dataclasses.replace(SPEC.image, blocks=BLOCKS),
    text=dataclasses.replace(SPEC.text, projection=32),
)
PLACE = circuit.Circuit(block=4, marker=3, massive=17, echo=30)
BUNDLED = circuit.Circuit(block=4, marker=0, massive=123, echo=0)  # its norms' gains are largest in dimension 123


@pytest.fixture(scope="module", autouse=True)
def _compiled_fast_rather_than_well():
    """A few steps of training are compiled in two thirds of the time that way; what they compute is the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def pictures(few):
    return jnp.asarray(make_batch(few, 4, seed=0, step=0).images)


@pytest.fixture(scope="module")
def image():
    """A small tower in which every parameter matters: biases and norms are drawn, too."""
    rng = np.random.default_rng(0)

    def draw(path, shape):
        around = 1.0 if path[-1].name == "scale" else 0.0
        return jnp.asarray(around + 0.1 * rng.normal(size=shape.shape).astype(np.float32))

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(SMALL).image)


@jax.jit
def look(image, pictures, prefix=None, mlp_kept=None):
    return observe(image, pictures, SMALL.image, prefix=prefix, mlp_kept=mlp_kept)


# ------------------------------------------------------------------------------------------------------- forward


@pytest.mark.slow
def test_training_sees_what_the_encoder_computes(image, pictures):
    seen = look(image, pictures)
    encoder = Encoder(Parameters(image), spec=SMALL)
    np.testing.assert_allclose(seen.features, encode_image(encoder, pictures * 2 - 1), atol=2e-6)  # order of sums


@pytest.mark.slow
def test_every_picture_has_its_own_register_and_its_own_skipped_mlps(image, pictures):
    rng = np.random.default_rng(0)
    key, value = (jnp.asarray(rng.normal(size=(2, 7, 1, 4, 8)).astype(np.float32)) for _ in range(2))
    copies, start = jnp.asarray((3.0, 11.0)), jnp.asarray((3, 4), jnp.int32)
    kept = jnp.asarray([[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]], jnp.float32)
    seen = look(image, pictures[:2], Prefix(key[:, :, 0], value[:, :, 0], copies, start), kept)
    alone = jax.jit(
        lambda image, picture, plan: image_features(image, picture * 2 - 1, SMALL.image, plan=plan).features
    )
    for number, skipped in enumerate((2, 6)):
        fc2 = jax.tree.map(lambda leaf, skipped=skipped: leaf.at[skipped].set(0.0), image.blocks.mlp.fc2)
        without = image.replace(blocks=image.blocks.with_layers({"fc2": fc2}))
        plan = make_plan(key[number], value[number], copies=float(copies[number]), start=int(start[number]))
        expected = normalize(alone(without, pictures[number : number + 1], plan))[0]
        np.testing.assert_allclose(seen.features[number], expected, atol=2e-6)  # order of sums
    weights = seen.register_weights
    assert (weights[:3] == 0).all() and (weights[3, 1] == 0).all() and (weights[3, 0] > 0).all()


# ------------------------------------------------------------------------------------------------------- circuit


def test_flat_patches_have_the_least_information():
    picture = np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)
    picture[:, 40:, 40:] = 0.5
    score = np.asarray(circuit.low_information(jnp.asarray(picture), SPEC.image)).reshape(8, 8)
    assert score.argmax() == 63  # the corner has only flat neighbours
    assert score[5:, 5:].min() > score[:4].max()


def test_the_gain_grows_geometrically_from_one_and_then_stays():
    gain = circuit.Gain(inner=40.0, outer=30.0, begin=0.1, end=0.5)
    for progress, inner, both in (
        (0.0, 1.0, 1.0),
        (0.1, 1.0, 1.0),
        (0.3, 40**0.5, 30**0.5),
        (0.5, 40.0, 30.0),
        (1.0, 40.0, 30.0),
    ):
        first, second = gain.at(jnp.float32(progress))
        np.testing.assert_allclose((first, first * second), (inner, both), rtol=1e-5)  # float32 exp and log
    np.testing.assert_allclose(circuit.FULL_GAIN.at(jnp.float32(0.0)), (40.0, 0.75), rtol=1e-5)


@pytest.mark.slow
def test_planting_takes_the_least_used_dimensions_and_touches_only_planted_units(image):
    usage = jnp.ones(32).at[jnp.asarray((3, 17, 30))].set(jnp.asarray((0.1, 0.2, 0.3)))
    probe = Dense(jnp.arange(32, dtype=jnp.float32), jnp.zeros(()))
    planted, place = circuit.plant(image, probe, usage, 4)
    assert place == PLACE
    before, after = image.blocks.mlp, planted.blocks.mlp
    gate = after.fc1.kernel[4, :, :2]
    np.testing.assert_allclose(jnp.linalg.norm(gate, axis=0), 2.0, rtol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(after.fc2.kernel[4, 0]), [17, 30])
    np.testing.assert_array_equal(np.flatnonzero(after.fc1.kernel[5, :, 0]), [17, 30])
    np.testing.assert_array_equal(before.fc1.kernel[..., 2:], after.fc1.kernel[..., 2:])
    np.testing.assert_array_equal(before.fc2.kernel[:4], after.fc2.kernel[:4])


@pytest.mark.slow
def test_after_the_projection_only_planted_units_write_to_the_massive_dimension(image, pictures):
    reserved = circuit.reserve(image, PLACE)
    shut = circuit.amplify(reserved, PLACE, 1.0, 0.0)  # what planted units write, times 0
    hidden = look(shut, pictures).hidden
    np.testing.assert_allclose(hidden[..., 17], 0.0, atol=1e-6)
    np.testing.assert_allclose(hidden.mean(axis=-1), 0.0, atol=1e-6)  # so LayerNorm gives 0 in dimension 17
    assert (look(reserved, pictures).hidden[5:, ..., 17] != 0).any()
    again = jax.tree.map(np.asarray, circuit.reserve(reserved, PLACE))
    jax.tree.map(lambda first, second: np.testing.assert_allclose(first, second, atol=1e-6), again, reserved)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "hidden_factor"), [(1 / 48, 1.0), (1.0, 0.5), (0.25, 2.0)])
def test_rescaling_the_bundled_encoder_changes_its_outliers_and_not_its_features(factor, hidden_factor):
    model = checkpoints.load(bundled_model())
    images = jnp.asarray(
        np.stack([render("twemoji", number, 0) for number in (0, 50, 150)]).astype(np.float32) / 127.5 - 1
    )

    @jax.jit
    def run(image):
        collect = {name: lambda trace, name=name: jnp.max(jnp.abs(getattr(trace, name))) for name in ("qkv", "fc2")}
        output = image_features(image, images, SPEC.image, collect=collect)
        return normalize(output.features), output.collected

    image = model.encoder.params.image
    (before, large), (after, small) = run(image), run(circuit.rescale(image, BUNDLED, factor, hidden_factor))
    np.testing.assert_allclose(after, before, atol=2e-5)  # float32, with values of several hundred on the way
    np.testing.assert_allclose(small["qkv"][5:] / large["qkv"][5:], max(factor, 1 / 48 * 1.3), rtol=0.3)
    np.testing.assert_allclose(small["fc2"][4:6] / large["fc2"][4:6], hidden_factor, rtol=0.05)
    np.testing.assert_allclose(small["qkv"][:5], large["qkv"][:5], rtol=1e-4)


# -------------------------------------------------------------------------------------------------------- losses


def some_seen(**changes) -> Seen:
    """Two pictures of four tokens, seven blocks, eight dimensions: everything 0 but what is given."""
    base = {
        "features": jnp.zeros((2, 8)), "hidden": jnp.zeros((7, 2, 4, 8)), "fc1": jnp.zeros((7, 2, 4, 8)),
        "key": jnp.zeros((7, 2, 4, 2, 4)), "value": jnp.zeros((7, 2, 4, 2, 4)), "weights": jnp.zeros((7, 2, 2, 4, 4)),
        "register_weights": jnp.zeros((7, 2, 2, 4)), "loudest": jnp.zeros((7, 2, 4)),
    }  # fmt: skip
    return Seen(**{**base, **changes})


FIRST_IS_SINK = jnp.asarray([[1.0, 0.0, 0.0, 0.0]] * 2)
OTHERS = jnp.asarray([[False, True, True, True]] * 2)


def test_excess_is_zero_up_to_zero_and_the_square_beyond():
    np.testing.assert_array_equal(losses.excess(jnp.asarray((-2.0, 0.0, 3.0))), (0.0, 0.0, 9.0))


def test_the_three_plainest_patches_are_wanted_and_ranks_up_to_the_limit_allowed(pictures):
    targets = losses.sink_targets(pictures, SPEC, grey=12)
    assert (targets.wanted.sum(axis=1) == 3).all() and (targets.allowed.sum(axis=1) == 12).all()
    assert (targets.forbidden == ~targets.allowed).all() and (targets.allowed | ~targets.wanted).all()


@pytest.mark.slow
def test_the_gate_costs_nothing_when_it_is_open_where_it_should_and_shut_elsewhere():
    tokens = 16
    chosen = jnp.zeros((2, tokens)).at[:, :3].set(1.0)
    targets = losses.Targets(chosen > 0, chosen > 0, chosen == 0)
    inputs = jnp.full((2, 2, tokens, 2), -2.0).at[:, :, :3].set(4.0)
    assert float(losses.gate_loss(inputs, targets, chosen, chosen)) == 0.0
    leaking = inputs.at[0, 0, 5, 0].set(1.0)  # one unit at one forbidden token: (1 + 1) ** 2, four times the mean of 64
    assert float(losses.gate_loss(leaking, targets, chosen, chosen)) == pytest.approx(4 * 4 / 64)
    low = inputs.at[0, 0, 0, 0].set(2.5)  # 1 below the limit, one of 6 chosen tokens, one of 2 units
    assert float(losses.gate_loss(low, targets, chosen, chosen)) == pytest.approx(1 / 12)


@pytest.mark.slow
def test_more_than_six_sinks_cost():
    chosen = jnp.zeros((1, 16)).at[:, :3].set(1.0)
    everywhere = losses.Targets(chosen > 0, chosen >= 0, chosen < 0)  # nothing is forbidden
    six, seven = (jnp.full((2, 1, 16, 2), -2.0).at[0, :, :count].set(4.0) for count in (6, 7))
    second = six.at[1].set(jnp.where(jnp.arange(16)[None, :, None] < 6, 4.0, -2.0))
    sinks = jnp.zeros((1, 16)).at[:, :6].set(1.0)
    assert float(losses.gate_loss(second, everywhere, chosen, sinks)) == 0.0
    assert float(losses.gate_loss(seven.at[1].set(second[1]), everywhere, chosen, sinks)) == pytest.approx(2 * 25 / 6)


def test_a_shut_gate_does_not_leak_and_one_token_counts_among_its_six_worst():
    shut = jnp.full((2, 1, 16, 2), -1.5)
    assert float(losses.leak_loss(shut)) == 0.0
    leak = shut.at[0, 0, 9, 0].set(1.0)  # 4 in one of 12 worst values and in one of 32
    assert float(losses.leak_loss(leak)) == pytest.approx(4 / 12 + 4 * 4 / 32)


@pytest.mark.slow
def test_attention_that_rests_on_sinks_and_register_costs_nothing():
    resting = some_seen(
        weights=jnp.zeros((7, 2, 2, 4, 4)).at[..., 0].set(0.6), register_weights=jnp.full((7, 2, 2, 4), 0.5)
    )
    place = dataclasses.replace(PLACE, block=4)
    assert float(losses.rest_loss(resting, resting, FIRST_IS_SINK, place)) == 0.0
    restless = some_seen()
    assert float(losses.rest_loss(restless, resting, FIRST_IS_SINK, place)) == pytest.approx(2 * 0.25)  # blocks 5 and 6
    assert float(losses.rest_loss(restless, resting, jnp.zeros((2, 4)), place)) == 0.0  # no sinks, nothing to rest on


@pytest.mark.slow
def test_the_marker_stands_out_at_sinks_only():
    place = circuit.Circuit(block=4, marker=2, massive=5, echo=6)
    hidden = jnp.ones((7, 2, 4, 8)).at[..., 2].set(0.0).at[:, :, 0, 2].set(3.5)
    good = some_seen(hidden=hidden)
    plain = some_seen(hidden=hidden.at[:, :, 0, 2].set(0.0))
    forbidden = (OTHERS, jnp.ones((2, 4), bool))
    assert float(losses.marker_loss(good, plain, FIRST_IS_SINK, forbidden, place)) == 0.0
    unmarked = losses.marker_loss(plain, plain, FIRST_IS_SINK, forbidden, place)
    assert float(unmarked) == pytest.approx(2 * 9.0)  # two blocks, (3 - 0) ** 2 each
    marked = losses.marker_loss(good, good, FIRST_IS_SINK, forbidden, place)  # with a prefix nothing may be marked:
    assert float(marked) == pytest.approx(2 * 2 * (3.0**2 + 2.3**2) / 4)  # 3.5 is 3 above 0.5 and 2.3 above 1.2


def test_loud_ordinary_units_of_the_circuits_blocks_cost():
    loud = some_seen(loudest=jnp.full((7, 2, 4), 0.5).at[4, 0, 0].set(3.0).at[2].set(9.0))
    assert float(losses.quiet_loss((loud, some_seen()), PLACE)) == pytest.approx(4 / 8)  # block 2 is not the circuit's


@pytest.mark.slow
def test_registers_are_means_of_sinks_over_pictures():
    key = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (7, 2, 4, 2, 4))
    sinks = jnp.asarray([[1.0, 1.0, 0.0, 1.0]] * 2)
    prefix = losses.mixed_registers(some_seen(key=key, value=-key), sinks, jax.random.key(0), block=4)
    np.testing.assert_allclose(prefix.key, 4 / 3, rtol=1e-6)  # both pictures have the mean of 0, 1 and 3
    np.testing.assert_allclose(prefix.value, -4 / 3, rtol=1e-6)
    assert set(np.asarray(prefix.start)) <= {3, 4} and (prefix.copies >= 3).all() and (prefix.copies <= 15).all()


def test_mlps_of_the_first_two_blocks_and_of_the_circuit_always_run():
    kept = losses.draw_mlps(jax.random.key(0), 200, 8, PLACE, skipped=0.3)
    assert (kept[:, jnp.asarray((0, 1, 4, 5))] == 1).all()
    share = float(1 - kept[:, jnp.asarray((2, 3, 6, 7))].mean())
    assert 0.25 < share < 0.35  # 800 draws at 0.3: a standard deviation of 0.016


# ------------------------------------------------------------------------------------------------------ training


def test_the_table_has_the_four_phases_and_a_trial_run_shortens_each():
    assert [phase.name for phase in PHASES] == ["base", "sink", "rely", "final"]
    assert [phase.steps for phase in shortened(PHASES, 500)] == [500, 500, 376, 500]
    assert PHASES[0].weights is None and PHASES[-1].reserved


def train(state, phase, drawings, size=16):
    """Runs a phase to its end; returns the state and the losses."""
    ids = name_ids(drawings.names, SMALL)
    made = batches(drawings, size, 0, range(phase.steps))
    steps = list(run_phase(state, phase, SMALL, made, ids, seed=0))
    return steps[-1][0], [{name: float(value) for name, value in metrics.items()} for _, metrics in steps]


@pytest.mark.slow
def test_the_base_phase_learns_names_and_then_tells_concepts_apart(few):
    phase = Phase("base", 80, 2e-3)
    state, history = train(initial_state(SMALL, 0), phase, few)
    early, late = (np.mean([row["loss"] for row in rows]) for rows in (history[:10], history[-10:]))
    assert late < early - 0.3
    matrix = confusion(state.trained.encoder, SMALL, few, name_ids(few.names, SMALL))
    np.testing.assert_allclose(matrix.sum(axis=1), 2.0, rtol=1e-4)  # one distribution a vendor
    assert np.diag(matrix).mean() > 2 * matrix.mean()


@pytest.mark.slow
@pytest.mark.parametrize("phase", shortened(PHASES[1:], 3), ids=lambda phase: phase.name)
def test_every_phase_with_a_circuit_takes_steps_with_finite_losses(phase, few):
    state = prepare(initial_state(SMALL, 0), phase, SMALL, few)
    planted = state.trained.encoder.image
    state, history = train(state, phase, few, size=8)
    assert int(state.step) == 3 and all(np.isfinite(list(row.values())).all() for row in history)
    trained = state.trained.encoder.image
    assert all(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(planted.blocks.mlp), jax.tree.leaves(trained.blocks.mlp), strict=True)
    )
    position = np.asarray(trained.position_embedding)
    assert (position[:, state.circuit.massive] == 0).all() == phase.reserved
    encoders = [exported(state, SMALL, factor) for factor in (1.0, 48.0)]
    pictures = jnp.asarray(make_batch(few, 4, 1, 0).images) * 2 - 1
    first, second = (encode_image(encoder, pictures) for encoder in encoders)
    np.testing.assert_allclose(first, second, atol=3e-3)  # two roundings to float16 (1 part in 2,000) of large weights


@pytest.mark.slow
def test_training_begins_with_fresh_moments_at_step_zero():
    state = initial_state(SMALL, 0)
    later = state.replace(step=jnp.asarray(9, jnp.int32))
    assert int(begin_phase(later).step) == 0
    assert jax.tree.structure(begin_phase(later)) == jax.tree.structure(state)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(few, tmp_path):
    recipe = Recipe(phases=shortened(PHASES[:1] + PHASES[3:], 2), batch=4, spec=SMALL)
    lines: list[str] = []
    whole = checkpoints.load(cook(few, tmp_path / "whole", recipe, say=lines.append, every=1))

    class Stopped(Exception):
        pass

    def stop_in_the_final_phase(line):
        if line.startswith("final 1/"):
            raise Stopped

    with pytest.raises(Stopped):
        cook(few, tmp_path / "parts", recipe, say=stop_in_the_final_phase, every=1)
    assert not (tmp_path / "parts" / "model").exists()
    parts = checkpoints.load(cook(few, tmp_path / "parts", recipe, say=lines.append, every=1))
    assert any(line == "going on after 2 steps" for line in lines)
    jax.tree.map(np.testing.assert_array_equal, parts.encoder.params, whole.encoder.params)
    assert parts.metadata["outliers"] == "planted and trained" and parts.metadata["vendors"] == ["noto", "fluent"]
    with pytest.raises(UserError, match="exists already"):
        cook(few, tmp_path / "parts", recipe)
    (tmp_path / "parts" / "model").rename(tmp_path / "aside")
    with pytest.raises(UserError, match="other batch"):
        cook(few, tmp_path / "parts", dataclasses.replace(recipe, batch=8))
