from __future__ import annotations

import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.data.cut import in_batches
from regcache_jax.quantization import histogram
from regcache_jax.quantization.calibration import Calibration, observe
from regcache_jax.quantization.histogram import BINS, Histogram, bounds, scale_and_zero_point
from regcache_jax.quantization.quantize import quantize


def counted(values: np.ndarray, exponent: int) -> Histogram:
    """A histogram made by numpy, of one block and one group."""
    edges = (np.arange(2 * BINS + 1) - BINS) * 2.0**exponent / BINS
    counts = np.histogram(values, edges)[0].astype(np.int64)
    ends = (np.float32([[min(values.min(), 0)]]), np.float32([[max(values.max(), 0)]]))
    return Histogram(counts[None, None], np.array([[exponent]], np.int32), *ends)


@pytest.mark.slow
def test_streamed_counts_are_numpys_and_do_not_depend_on_the_batches():
    encoder, images = small.encoder("dinov2").with_plan(small.plan(2)), small.images(12)
    whole = observe(encoder, [images])
    parts = observe(encoder, list(in_batches(images[::-1], 5, fill=False)))
    for site in SITES:
        for name in ("exponent", "lower", "upper", "counts"):
            one, other = getattr(whole.sites[site], name), getattr(parts.sites[site], name)
            if name == "counts":
                assert np.abs(one - other).sum() <= 1e-3 * one.sum()  # values on an edge, another order of additions
            else:
                np.testing.assert_allclose(one, other, rtol=1e-5)
    seen = small.search_form(encoder, images, ("fc1", "present")).collected
    for block in range(3):
        values = np.asarray(seen["fc1"][block])[np.asarray(seen["present"][block])].ravel()
        expected = counted(values, int(whole.sites["fc1"].exponent[block, 0])).counts[0, 0]
        assert np.abs(whole.sites["fc1"].counts[block, 0] - expected).sum() <= 1e-3 * len(values)
        assert whole.sites["fc1"].counts[block].sum() == len(values)


def test_coarser_bins_hold_the_same_values():
    values = np.random.default_rng(0).uniform(-0.9, 0.9, 1000)
    np.testing.assert_array_equal(
        histogram._coarsen(counted(values, 0).counts, np.array([[3]])), counted(values, 3).counts
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_percentile_is_numpys_to_one_bin(symmetric):
    values = np.random.default_rng(1).standard_normal(20000) + 0.3
    low, high = bounds(counted(values, 3), "percentile", 99.0, np.array([127]), symmetric)
    width = 8 / BINS
    if symmetric:
        expected = (-np.quantile(np.abs(values), 0.99), np.quantile(np.abs(values), 0.99))
    else:
        expected = np.quantile(values, [0.005, 0.995])
    np.testing.assert_allclose([low[0, 0], high[0, 0]], expected, atol=1.5 * width)


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 1.05), (4, 1.05)])
def test_mse_bounds_are_nearly_as_good_as_brute_force(bits, tolerance):
    values = np.random.default_rng(2).standard_t(4, 20000).clip(-30, 30)
    largest = 2 ** (bits - 1) - 1

    def error(threshold):
        scale = threshold / largest
        return np.square(np.clip(np.round(values / scale), -largest, largest) * scale - values).mean()

    best = min(error(threshold) for threshold in np.linspace(0.5, 30, 400))
    high = bounds(counted(values, 5), "mse", 0.0, np.array([largest]), True)[1][0, 0]
    assert error(high) <= tolerance * best


def test_asymmetric_mse_keeps_the_short_side():
    values = np.concatenate([np.random.default_rng(3).exponential(1.0, 20000), [-0.17] * 500])
    low, high = bounds(counted(values, 4), "mse", 0.0, np.array([7]), False)
    assert -0.3 < low[0, 0] < 0 and 2 < high[0, 0] < 10


def test_entropy_clips_one_far_value_and_keeps_an_even_range():
    rng = np.random.default_rng(4)
    far = np.append(rng.standard_normal(50000), 60.0)
    assert bounds(counted(far, 6), "entropy", 0.0, np.array([127]), True)[1][0, 0] < 10
    even = bounds(counted(rng.uniform(-1, 1, 50000), 0), "entropy", 0.0, np.array([127]), True)[1][0, 0]
    assert even > 0.9


def test_scale_and_zero_point_by_hand():
    # -1..3 over 2 * 127 steps; the middle, 1, is stored as 0, so zero is stored as -1 / scale = -63.5, rounded to even
    scale, zero_point = scale_and_zero_point(
        np.float32([-1.0, -2.0, 0.0]), np.float32([3.0, 2.0, 0.0]), np.array([127])
    )
    np.testing.assert_allclose(scale, [4 / 254, 4 / 254, 1.0], rtol=1e-6)
    assert zero_point.tolist() == [-64, 0, 0]


@pytest.mark.slow
def test_a_calibration_is_saved_looked_at_and_used_again(tmp_path):
    encoder, images = small.encoder("clip"), small.images(12)
    calibration = observe(encoder, [images])
    calibration.save(tmp_path / "calibration.safetensors")
    again = Calibration.load(tmp_path / "calibration.safetensors")
    assert (again.num_images, again.groups) == (12, False)
    for estimator in ("absmax", "percentile", "mse", "entropy"):
        scheme = Scheme(estimator=estimator)
        direct, reused = quantize(encoder, images, scheme), quantize(encoder, None, scheme, calibration=again)
        for site in SITES:
            scales = [each.params.image.blocks.grids.of(site).scale for each in (direct, reused)]
            np.testing.assert_allclose(*scales, rtol=1e-6)
    with pytest.raises(UserError, match="calibrate again"):
        quantize(encoder, None, Scheme(activations="group"), calibration=again)
    (tmp_path / "other").write_bytes(b"not a file of ours")
    with pytest.raises(UserError, match="not a readable calibration file"):
        Calibration.load(tmp_path / "other")


@pytest.mark.slow
def test_groups_are_counted_apart():
    encoder, images = small.encoder("dinov2"), small.images(6)
    found = observe(encoder, [images], groups=True).sites["fc2"].counts.sum(axis=2)
    np.testing.assert_array_equal(found, np.broadcast_to(6 * 40 * np.array([1, 2, 16]), (3, 3)))
    grouped = quantize(encoder, images, Scheme(activations="group", estimator="percentile", percentile=99.0))
    assert grouped.params.image.blocks.grids.fc2.scale.shape == (3, 3)


def test_pictures_that_are_not_finite_are_named():
    with pytest.raises(UserError, match="site qkv of block 0"):
        observe(small.encoder(), [small.images(2) * np.float32(np.nan)])


def published_divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    """TensorRT's measure (Migacz, GTC 2017) in plain numpy: of `kept` bins of |x| in `levels` even parts."""
    reference = counts[:kept].astype(np.float64)
    reference[-1] += counts[kept:].sum()
    quantized = np.zeros(kept)
    for part in np.array_split(np.arange(kept), levels):
        filled = counts[part] > 0
        quantized[part[filled]] = counts[part].sum() / max(filled.sum(), 1)
    p, q = reference / reference.sum(), quantized / max(quantized.sum(), 1.0)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))


@pytest.mark.parametrize("kind", ["normal", "laplace", "outlier"])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_entropy_threshold_is_nearly_the_best_by_the_published_measure(kind, bits):
    rng = np.random.default_rng(5)
    values = rng.laplace(size=50000).clip(-15.9, 15.9) if kind == "laplace" else rng.standard_normal(50000)
    values = np.append(values, [14.0, -15.5]) if kind == "outlier" else values
    counts, levels = histogram._magnitudes(counted(values, 4).counts[0, 0]), 2 ** (bits - 1)
    found = published_divergence(counts, int(histogram._least_divergence(counts, levels)), levels)
    least = min(published_divergence(counts, kept, levels) for kept in range(levels, BINS + 1, 16))
    assert found < 1.1 * least  # levels that are rounded to, not cut at, and candidates 5 % apart
