import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regcache_jax as rc
from regcache_jax.core.names import to_names
from regcache_jax.encoders.encoder import Encoder, init_params
from regcache_jax.studies.grid import features_of, label_free_error
from regcache_jax.studies.planted import plant, planted_spec
from regcache_jax.studies.rivals import move_register_neurons, rivals, token_prefixes

SPEC = planted_spec(width=64, num_blocks=4, num_heads=4, image_size=32, patch_size=8)
SCHEME = rc.Scheme(8, 8)


@pytest.fixture(scope="module")
def planted():
    return plant(["patch sinks"], spec=SPEC, num_images=16)


@pytest.mark.slow
def test_prefixes_are_rows_of_a_patch_of_the_mean_patch_and_of_nothing():
    spec = planted_spec(width=16, num_blocks=2, num_heads=2, image_size=8, patch_size=4)
    encoder = Encoder(init_params(spec, jax.random.key(0)), spec=spec)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    rows = token_prefixes(encoder, image, seed=0)
    other = token_prefixes(encoder, image, seed=1)
    for key, value in rows.values():
        assert key.shape == value.shape == (2, 1, 2, 8)
    assert not np.any(rows["zero row (null attention)"][0])
    np.testing.assert_array_equal(rows["mean token as prefix"][0], other["mean token as prefix"][0])
    assert not np.allclose(rows["random token as prefix"][0], other["random token as prefix"][0])
    again = token_prefixes(encoder, image, seed=0)
    np.testing.assert_array_equal(rows["random token as prefix"][1], again["random token as prefix"][1])


@pytest.mark.slow
def test_test_time_registers_silence_the_planted_neuron_and_give_its_sink_to_the_extra_token(planted):
    moved = move_register_neurons(planted.encoder, planted.images, planted.block, num_neurons=1)
    assert rc.inspect(moved.with_plan(None), planted.images).sinks_per_image.sum() == 0
    changed = jax.tree.map(lambda one, other: int((one != other).sum()), moved.params, planted.encoder.params)
    named = to_names(changed)
    kernel, bias = (named.pop(f"image/blocks/mlp/fc1/{leaf}") for leaf in ("kernel", "bias"))
    assert 0 < kernel <= SPEC.image.blocks.width and bias == 1 and not any(named.values())
    assert moved.schedule.start == planted.block + 1 and moved.schedule.delete_count == 0
    # the extra token is the sink: its key is as hidden from all heads as a sink's own, so features do not change
    np.testing.assert_allclose(
        features_of(moved, planted.images), features_of(planted.encoder, planted.images), atol=1e-4
    )


@pytest.mark.slow
def test_the_table_holds_every_rival_and_registers_beat_those_that_leave_the_sinks(planted):
    config = rc.SearchConfig(copies=(6.0, 15.0), delete_counts=(0,), back=1, rounds=1, chunk=8)
    result = rc.search(planted.encoder, planted.images, SCHEME, config)
    table = dict(rivals(planted.encoder, planted.images, SCHEME, result, config))
    assert set(table) == {
        "no registers", "prefix only", "delete only", "RegCache", "random token as prefix", "mean token as prefix",
        "zero row (null attention)", "test-time registers", "percentile clipping", "token-group scales", "per-token dynamic scales",
        "RegCache with percentile clipping",
    }  # fmt: skip
    reference = features_of(planted.encoder, planted.images)
    errors = {
        name: label_free_error(features_of(encoder, planted.images), reference) for name, encoder in table.items()
    }
    for name in ("no registers", "mean token as prefix", "zero row (null attention)", "token-group scales"):
        assert errors["RegCache"] < 0.3 * errors[name], name
    # what takes the sinks away, or gives them a scale of their own, does as well: within the rounding of other scales
    for name in ("delete only", "test-time registers", "per-token dynamic scales"):
        assert errors[name] < 2 * errors["RegCache"], name
    assert errors["percentile clipping"] < errors["no registers"]
    assert table["percentile clipping"].scheme.estimator == "percentile"
    both = table["RegCache with percentile clipping"]
    assert both.scheme.estimator == "percentile" and both.plan.has_registers
    assert errors["RegCache with percentile clipping"] < errors["percentile clipping"]
    assert table["per-token dynamic scales"].scheme.activations == "token"
    assert table["no registers"].plan is None and jnp.issubdtype(reference.dtype, jnp.float32)
