"""The promises of the block stack (docs/method.md): where registers enter and leave, and the two ways to run a plan."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from regcache_jax.core.plan import BlockRegister, Schedule, empty_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.blocks import run_blocks
from regcache_jax.encoders.encoder import encode_image, normalize
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.serving import TokenRegister, segments, serve_blocks, serve_tokens, token_rows
from regcache_jax.encoders.vision import image_features, serve_image
from regcache_jax.ops.attention import attend, attend_reference
from regcache_jax.quantization.quantize import quantize

# The same numbers added up in another order, through three blocks whose values are of order one.
ORDER = {"rtol": 2e-5, "atol": 2e-5}
blocks_of = st.integers(0, 3)
PARAMS = {kind: small.encoder(kind).params.image for kind in small.KINDS}


@functools.partial(jax.jit, static_argnames=("kind",))
def hidden_by_block(params, hidden, plan, *, kind):
    spec = small.SPECS[kind].image
    output = run_blocks(
        params.blocks, hidden, Run(spec.blocks, None, spec.protected), plan=plan, collect={"hidden": lambda t: t.hidden}
    )
    return jnp.concatenate([output.collected["hidden"], output.hidden[None]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", small.KINDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(start=blocks_of, length=st.integers(0, 3))
def test_blocks_before_the_registers_enter_are_bit_equal_to_a_plan_that_does_nothing(kind, start, length):
    stop = min(3, start + length)
    params, hidden = PARAMS[kind], small.hidden(kind)
    plain = hidden_by_block(params, hidden, empty_plan(3, 3, 8), kind=kind)
    seen = hidden_by_block(params, hidden, small.random_plan(start=start, stop=stop), kind=kind)
    unseen = start + 1 if stop > start else 4  # the input of block `start` is still untouched
    np.testing.assert_array_equal(seen[:unseen], plain[:unseen])
    if stop > start:
        assert (np.asarray(seen[start + 1]) != np.asarray(plain[start + 1])).any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", small.KINDS)
def test_from_the_block_where_registers_leave_they_change_no_bit(kind):
    params, spec = PARAMS[kind], small.SPECS[kind].image
    run = jax.jit(functools.partial(run_blocks, run=Run(spec.blocks, None, spec.protected), start=2))
    middle = hidden_by_block(params, small.hidden(kind), small.random_plan(start=1, stop=2), kind=kind)[2]
    left = run(params.blocks, middle, plan=small.random_plan(start=1, stop=2)).hidden
    np.testing.assert_array_equal(left, run(params.blocks, middle, plan=empty_plan(3, 3, 8)).hidden)


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 4, 15])
def test_copies_of_a_register_weigh_as_one_row_with_a_logit_bias(copies):
    rng = np.random.default_rng(copies)
    query, key, value = jnp.asarray(rng.normal(size=(3, 2, 5, 4, 8)), jnp.float32)
    row = jnp.asarray(rng.normal(size=(2, 1, 4, 8)), jnp.float32)
    biased = attend(
        query, key, value, None, BlockRegister(row[0], row[1], jnp.full((1, 4), jnp.log(jnp.float32(copies))))
    )
    repeated = attend_reference(query, key, value, BlockRegister(row[0], row[1], jnp.zeros((1, 4))), copies)
    np.testing.assert_allclose(biased.mixed, repeated, **ORDER)
    total = biased.weights.sum(-1) + biased.register_weights.sum(-1)
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_copies_may_differ_by_block_and_head_and_be_fractions_and_traced():
    params, hidden = PARAMS["siglip"], small.hidden("siglip")
    per_head = jnp.asarray(np.random.default_rng(1).uniform(0.3, 9.0, (3, 3)), jnp.float32)
    together = hidden_by_block(params, hidden, small.random_plan(copies=per_head), kind="siglip")
    plan = small.random_plan()
    for block in range(3):  # later blocks' copies do not matter here, this block's do
        later = plan.replace(copies=per_head.at[block + 1 :].set(1.0))
        output = hidden_by_block(params, hidden, later, kind="siglip")
        np.testing.assert_allclose(output[block + 1], together[block + 1], **ORDER)


@pytest.mark.slow
def test_the_gradient_in_the_copies_is_finite_and_that_of_finite_differences():
    params, hidden = PARAMS["siglip"], small.hidden("siglip")

    registers = small.random_plan(start=1, stop=3)

    @jax.jit
    def run(log_copies):
        plan = registers.replace(copies=jnp.exp(log_copies))
        return run_blocks(params.blocks, hidden, Run(small.TANH), plan=plan).hidden

    def loss(log_copies):
        return jnp.sum(jnp.square(run(log_copies))) / 1000

    def loss_in_float64(log_copies):  # a float32 sum rounds by as much as two of them differ
        return np.sum(np.square(np.asarray(run(jnp.float32(log_copies)), np.float64))) / 1000

    for at in (-8.0, 0.0, 2.5):
        slope = jax.grad(loss)(jnp.float32(at))
        step = 0.05  # float32: a smaller step would measure rounding
        difference = (loss_in_float64(at + step) - loss_in_float64(at - step)) / (2 * step)
        np.testing.assert_allclose(slope, difference, rtol=0.02, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "start", "stop", "count"), [("siglip", 0, 3, 0), ("clip", 1, 2, 0), ("siglip", 2, 3, 3), ("clip", 1, 2, 2)]
)
def test_the_token_form_equals_the_kv_form(kind, start, stop, count):
    params, spec = PARAMS[kind], small.SPECS[kind].image
    hidden = small.hidden(kind)
    token = TokenRegister(
        3.0 * jnp.asarray(np.random.default_rng(5).normal(size=(2, 24)), jnp.float32), jnp.float32(2.5)
    )
    schedule = Schedule(start, stop, 2, count)

    plan = small.random_plan(num_registers=2, copies=2.5)

    @jax.jit
    def both(blocks, hidden, plan):
        key, value = token_rows(blocks, token, spec.blocks, schedule)
        plan = plan.replace(key=key, value=value)
        run = Run(spec.blocks, None, spec.protected)
        as_rows = serve_blocks(blocks, hidden, run, schedule, plan.rows())
        as_tokens = serve_tokens(blocks, hidden, run, schedule, token)
        return as_tokens.hidden, as_rows.hidden

    np.testing.assert_allclose(*both(params.blocks, hidden, plan), **ORDER)


@functools.partial(jax.jit, static_argnames=("spec", "scheme"))
def search_features(params, images, spec, plan, scheme=None):
    return image_features(params, images, spec, plan=plan, scheme=scheme).features


@functools.partial(jax.jit, static_argnames=("spec", "schedule", "scheme", "tile", "unroll"))
def serve(params, images, spec, schedule, plan, scheme=None, tile=None, unroll=False):
    output = serve_image(params, images, spec, schedule, registers=plan.rows(), scheme=scheme, tile=tile, unroll=unroll)
    return output.features, output.tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tile", "num_registers", "numbers"),
    [
        ("siglip", None, 1, {"start": 1, "stop": 2, "copies": 4.0, "delete_block": 2, "delete_count": 3}),
        ("siglip", 8, 2, {"start": 0, "stop": 3, "copies": 0.3, "delete_block": 0, "delete_count": 6}),
        ("no biases", 16, 1, {"start": 2, "stop": 3, "copies": 15.0, "delete_block": 1, "delete_count": 1}),
        ("clip", None, 2, {"start": 2, "stop": 2, "delete_block": 2, "delete_count": 5}),
        ("clip", 8, 1, {"start": 1, "stop": 3, "copies": 2.5}),
        ("dinov2", 8, 1, {"start": 1, "stop": 2, "copies": 9.0, "delete_block": 2, "delete_count": 2}),
        ("dinov2-swiglu", None, 1, {"start": 0, "stop": 0}),
    ],
)
def test_search_form_equals_serving_form(kind, tile, num_registers, numbers):
    params, spec = PARAMS[kind], small.SPECS[kind].image
    plan = small.random_plan(num_registers=num_registers, **numbers)
    images = small.images(2)
    features, tokens = serve(params, images, spec, plan.schedule(), plan, tile=tile)
    np.testing.assert_allclose(features, search_features(params, images, spec, plan), **ORDER)
    assert tokens.shape[1] == spec.num_tokens - numbers.get("delete_count", 0)


@pytest.mark.slow
@pytest.mark.parametrize(("activations", "tile"), [("static", 8), ("group", None), ("tensor", 8), ("token", None)])
def test_search_form_equals_serving_form_with_integer_kernels(activations, tile):
    images = small.images(8)
    plan = small.random_plan(start=1, stop=3, delete_block=2, delete_count=2)
    exact = small.encoder("clip").with_plan(plan)
    encoder = quantize(exact, images, Scheme(8, 8, activations))
    spec = encoder.spec.image

    # one image at a time: no measured scale carries a difference from one to the next
    @functools.partial(jax.vmap, in_axes=(None, 0, None))
    def search(params, image, scheme):
        return normalize(search_features(params, image[None], spec, plan, scheme))[0]

    @jax.vmap
    def served(image):
        arguments = image[None], spec, encoder.schedule, plan, encoder.scheme, tile
        return normalize(serve(encoder.params.image, *arguments)[0])[0]

    searched = search(encoder.params.image, images, encoder.scheme)
    errors = np.abs(searched - served(images)).max(axis=1)
    # Sums in another order put an activation on the other side of a rounding boundary now and then. Such an image differs by some
    # steps of an integer, less than rounding itself costs; the others do not.
    assert np.median(errors) < 1e-5
    assert (errors < np.abs(searched - search(exact.params.image, images, None)).max(axis=1)).all()


@pytest.mark.slow
def test_every_plan_runs_in_one_program():
    params, spec = PARAMS["siglip"], small.SPECS["siglip"].image
    search_features.clear_cache()
    images = small.images(2)
    for start, stop, block, count, copies in ((0, 3, 0, 0, 1.0), (2, 3, 1, 5, 0.5), (3, 3, 2, 2, 15.0)):
        plan = small.random_plan(start=start, stop=stop, delete_block=block, delete_count=count, copies=copies)
        search_features(params, images, spec, plan)
    assert search_features._cache_size() == 1


@pytest.mark.slow
def test_a_traced_first_block_steps_over_the_earlier_ones():
    params, hidden = PARAMS["siglip"], small.hidden("siglip")
    run = jax.jit(
        lambda hidden, start: run_blocks(
            params.blocks, hidden, Run(small.TANH), start=start, collect={"i": lambda t: t.fc2}
        )
    )
    for start in range(3):
        traced = run(hidden, jnp.int32(start))
        static = jax.jit(functools.partial(run_blocks, run=Run(small.TANH), start=start))(params.blocks, hidden)
        np.testing.assert_allclose(traced.hidden, static.hidden, **ORDER)
        assert (np.asarray(traced.collected["i"][:start]) == 0).all()
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(0, 0, 0, 0), [(0, 4)]),
        (Schedule(1, 3, 2, 1), [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (Schedule(1, 4, 1, 5), [(0, 1), (1, 4)]),
        (Schedule(2, 2, 3, 0), [(0, 4)]),
    ],
)
def test_segments_are_cut_only_where_something_changes(schedule, expected):
    assert segments(schedule, 4) == expected


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("integer", [False, True])
def test_unrolled_vmapped_pmapped_and_sharded_runs_agree_with_one_device(integer):
    images = small.images(8)
    plan = small.random_plan(start=1, stop=3, delete_block=2, delete_count=3, copies=4.0)
    encoder = small.encoder("clip").with_plan(plan)
    encoder = quantize(encoder, images, Scheme()) if integer else encoder
    one = np.asarray(jax.jit(encode_image)(encoder, images))
    # rounding at the edge of an integer, as above
    near = {"atol": 5e-3 if integer else 2e-5}
    shares = images.reshape(len(jax.devices()), -1, 16, 16, 3)
    mapped = jax.pmap(encode_image, in_axes=(None, 0))(encoder, shares)
    np.testing.assert_allclose(np.asarray(mapped).reshape(one.shape), one, **near)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(np.asarray(jax.jit(encode_image)(encoder, sharded)), one, **near)
    vmapped = jax.jit(jax.vmap(encode_image, in_axes=(None, 0)))(encoder, images[:, None])
    np.testing.assert_allclose(np.asarray(vmapped)[:, 0], one, **near)
    params, spec = encoder.params.image, encoder.spec.image
    unrolled, _ = serve(params, images, spec, encoder.schedule, encoder.plan, encoder.scheme, unroll=True)
    np.testing.assert_allclose(normalize(unrolled), one, **near)


@pytest.mark.slow
def test_plans_run_side_by_side_under_vmap():
    params, spec = PARAMS["siglip"], small.SPECS["siglip"].image
    images = small.images(2)
    plans = [small.random_plan(seed, start=seed, stop=3, delete_block=1, delete_count=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *plans)
    together = jax.vmap(lambda plan: search_features(params, images, spec, plan))(stacked)
    for plan, features in zip(plans, together, strict=True):
        np.testing.assert_allclose(features, search_features(params, images, spec, plan), **ORDER)


@pytest.mark.slow
@pytest.mark.parametrize("integer", [False, True])
def test_gradients_flow_through_float_and_straight_through_integers(integer):
    images = small.images(2)
    encoder = small.encoder("dinov2")
    quantized = quantize(encoder, np.asarray(images), Scheme()) if integer else encoder

    def loss(images, encoder):
        return jnp.sum(encode_image(encoder, images)[:, 0])

    slope = jax.jit(jax.grad(loss))
    exact, found = (np.asarray(slope(images, each)).ravel() for each in (encoder, quantized))
    assert np.isfinite(found).all()
    # eight bits change the function a little, so its straight-through gradient points nearly the same way
    assert exact @ found / np.linalg.norm(exact) / np.linalg.norm(found) > (0.98 if integer else 0.999999)


@pytest.mark.slow
def test_a_plan_that_does_nothing_is_no_plan():
    params, spec = PARAMS["clip"], small.SPECS["clip"].image
    images = small.images(3)
    # two programs: the compiler orders their additions differently
    nothing = search_features(params, images, spec, empty_plan(3, 3, 8))
    np.testing.assert_allclose(nothing, search_features(params, images, spec, None), **ORDER)
