"""Pictures of any shape: what is padding is never seen, whatever stands beside a picture and however long its sheet is."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import regcache_jax as rc
from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import EncoderSpec, ImpossibleSpec, Preprocessing
from regcache_jax.encoders.encoder import encode
from regcache_jax.encoders.outputs import patch_tokens
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.encoders.sheets import cells_of, fitted, grids_of, sheet_of
from regcache_jax.encoders.taps import encode_patches
from regcache_jax.encoders.vision import image_features
from regcache_jax.ops.delete import delete_largest, fill_absent, fill_lines, mark_largest
from regcache_jax.ops.positions import positions_on_grids, resize_matrix
from regcache_jax.quantization.calibrate import calibrate
from regcache_jax.quantization.calibration import observe
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.candidates import find_candidates
from regcache_jax.registers.inspect import find_sensitive_block
from regcache_jax.registers.stakes import measure_stakes
from regcache_jax.studies.rivals import token_prefixes

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums of other lengths


def with_budget(encoder, max_patches):
    """The encoder for sheets of so many lines."""
    image = dataclasses.replace(encoder.spec.image, max_patches=max_patches)
    return encoder.replace(spec=dataclasses.replace(encoder.spec, image=image))


def alone(number):
    """One of the pictures on a sheet that it fills."""
    rows, columns = small.SHAPES[number % len(small.SHAPES)]
    return small.sheets(number + 1)[number:, : rows * columns]


@pytest.mark.slow
def test_a_sheet_brings_its_grid_and_its_mask_along_in_every_dtype():
    for dtype in (jnp.float32, jnp.bfloat16):
        grids = grids_of(small.sheets(5).astype(dtype))
        for number, (rows, columns) in enumerate(small.SHAPES):
            count = rows * columns
            np.testing.assert_array_equal(grids.there[number], np.arange(20) < count)
            np.testing.assert_array_equal(grids.row[number, :count], np.repeat(np.arange(rows), columns))
            np.testing.assert_array_equal(grids.column[number, :count], np.tile(np.arange(columns), rows))
            assert (int(grids.rows[number, 0]), int(grids.columns[number, 0])) == (rows, columns)


def test_a_line_of_a_sheet_is_a_patch_row_by_row():
    picture = np.random.default_rng(0).uniform(-1, 1, (8, 12, 3)).astype(np.float32)
    sheet = sheet_of(picture, 4, 7)
    np.testing.assert_array_equal(sheet[4, :-1].reshape(4, 4, 3), picture[4:8, 4:8])
    np.testing.assert_array_equal(sheet[:, -1], [[1, 1, 0], [1, 0, 0], [1, 0, 0]] * 2 + [[0, 0, 0]])


def test_cells_of_a_grid_that_is_laid_over_pictures_are_those_in_which_patches_begin():
    cells = np.asarray(cells_of(small.sheets(2), 4))
    assert cells[0, :5].tolist() == [0, 0, 1, 2, 3] and cells[0, 5] == 4
    assert cells[1, 9] == 8 and cells[1, 17] == 11 and set(cells[1, 18:]) == {-1}


def test_positions_of_the_grid_of_each_picture_are_the_table_resampled_to_it():
    table = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    grids = grids_of(small.sheets(5))
    found = positions_on_grids(jnp.asarray(table), 4, (grids.row, grids.column), (grids.rows, grids.columns))
    for number, (rows, columns) in enumerate(small.SHAPES):
        down, across = (resize_matrix(4, side, "bilinear_antialias") for side in (rows, columns))
        wanted = np.einsum("ys,xt,std->yxd", down, across, table.reshape(4, 4, 6)).reshape(rows * columns, 6)
        np.testing.assert_allclose(found[number, : rows * columns], wanted, rtol=1e-5, atol=1e-6)


def test_a_picture_is_resized_to_nearly_its_aspect_and_within_the_budget():
    for height, width, budget in ((480, 640, 256), (1, 1000, 128), (1000, 1, 1024), (333, 77, 576), (16, 16, 256)):
        rows, columns = fitted(height, width, 16, budget)
        assert rows % 16 == columns % 16 == 0 and rows * columns <= budget * 256
    assert fitted(480, 640, 16, 256) == (14 * 16, 18 * 16)


def test_preprocessing_makes_a_sheet_of_the_whole_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (21, 40, 3), np.uint8)
    sheet = preprocess(pixels, small.NAFLEX.preprocessing)
    grids = grids_of(jnp.asarray(sheet[None]))
    assert sheet.shape == small.NAFLEX.image.picture_shape
    assert (int(grids.rows[0, 0]), int(grids.columns[0, 0])) == (3, 6) and np.abs(sheet).max() <= 1


def test_specs_of_sheets_are_whole_or_refused():
    assert EncoderSpec.from_json(small.NAFLEX.to_json()) == small.NAFLEX
    image = small.NAFLEX.image
    for wrong in ({"max_patches": None}, {"class_token": True}, {"position_interpolation": "bicubic"}):
        with pytest.raises(ImpossibleSpec, match="sheets of patches"):
            dataclasses.replace(image, **wrong)
    with pytest.raises(ImpossibleSpec, match="max_patches"):
        Preprocessing(16, "patches", "bilinear", 16, *([(0.5,) * 3] * 2), patch_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["search", "served", "tiled", "prepared"])
@pytest.mark.parametrize("kernels", ["float", "int8"])
def test_features_know_neither_batch_mates_nor_padding_with_registers_and_deletion(form, kernels):
    encoder = small.encoder("naflex").with_plan(small.plan(3))
    if kernels == "int8":
        encoder = quantize(encoder, [small.sheets(10)], Scheme(activations="static"))
    run = encoder.prepared() if form == "prepared" else encoder

    @jax.jit
    def features(pictures):
        if form != "search":
            return encode(run, pictures, tile=8 if form == "tiled" else None).features
        spec = encoder.spec.image
        return image_features(encoder.params.image, pictures, spec, plan=encoder.plan, scheme=encoder.scheme).features

    tolerance = CLOSE if kernels == "float" else {"rtol": 0.02, "atol": 0.02}  # a rounding may fall to the other side
    found, longer = features(small.sheets(5)), features(small.sheets(5, max_patches=33))
    np.testing.assert_allclose(longer, found, **tolerance)
    np.testing.assert_allclose(features(alone(1))[0], found[1], **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["tensor", "group"])
def test_scales_that_are_measured_know_nothing_of_padding(activations):
    encoder = quantize(small.encoder("naflex"), [small.sheets(10)], Scheme(activations=activations))
    short, long = (encode(encoder, small.sheets(10, max_patches=count)).features for count in (20, 41))
    np.testing.assert_allclose(long, short, rtol=1e-3, atol=1e-3)


def test_only_tokens_are_deleted_and_one_is_left():
    hidden = np.zeros((2, 6, 3), np.float32)
    hidden[0, :5] = np.array([3, -9, 1, 5, 2], np.float32)[:, None]
    hidden[1, :2] = np.array([4, 7], np.float32)[:, None]
    marked = mark_largest(jnp.asarray(hidden), 3, 0, padded=True)
    np.testing.assert_array_equal(marked, [[True, True, False, True, False, False], [False, True] + [False] * 4])
    left, places = delete_largest(jnp.asarray(hidden), 3, 0, padded=True)
    np.testing.assert_array_equal(left[:, :, 0], [[1, 2, 0], [4, 0, 0]])
    np.testing.assert_array_equal(places, [[2, 4, -1], [0, -1, -1]])


@pytest.mark.slow
def test_a_picture_of_fewer_tokens_than_are_deleted_keeps_one_in_both_forms():
    encoder = small.encoder("naflex").with_plan(small.plan(15))
    tower, spec = encoder.params.image, encoder.spec.image
    searched = image_features(tower, small.sheets(5), spec, plan=encoder.plan)
    served = encode(encoder, small.sheets(5))
    np.testing.assert_array_equal(searched.present.sum(axis=1), [5, 3, 2, 1, 1])
    np.testing.assert_allclose(served.features, searched.features, **CLOSE)


@pytest.mark.slow
def test_what_fills_up_a_batch_gives_finite_features():
    assert np.isfinite(encode(small.encoder("naflex"), jnp.zeros((2, 20, 17, 3))).features).all()


@pytest.mark.slow
def test_padding_never_enters_a_range_or_a_histogram():
    encoder, scheme = small.encoder("naflex").with_plan(small.plan(2)), Scheme(activations="static")
    short, long = ([small.sheets(10, max_patches=count)] for count in (20, 37))
    for site, found in calibrate(encoder, short, scheme).items():
        np.testing.assert_allclose(calibrate(encoder, long, scheme)[site], found, rtol=1e-5)
    shorter, longer = observe(encoder, short), observe(encoder, long)
    for site, histogram in shorter.sites.items():
        assert histogram.counts.sum() == longer.sites[site].counts.sum()
        assert np.abs(histogram.counts - longer.sites[site].counts).sum() <= 20  # neighbours of a bin's edge


@pytest.mark.slow
def test_padding_never_enters_what_inspect_candidates_and_stakes_find():
    pictures = [np.asarray(small.sheets(15, max_patches=count)) for count in (20, 37)]
    encoders = [with_budget(small.encoder("naflex"), count) for count in (20, 37)]
    short, long = (rc.inspect(*pair) for pair in zip(encoders, pictures, strict=True))
    for name, figure in dataclasses.asdict(short).items():
        np.testing.assert_allclose(getattr(long, name), figure, rtol=1e-4, atol=1e-4, err_msg=name)
    assert short.position_maximum.shape[-1] == short.sink_share.shape[-1] == 16
    few, many = (find_candidates(*pair, [1, 2], count=240) for pair in zip(encoders, pictures, strict=True))
    np.testing.assert_allclose(many.norm, few.norm, rtol=1e-5)
    assert int((few.norm[0] >= 0).sum()) == 3 * sum(rows * columns for rows, columns in small.SHAPES)
    assert find_sensitive_block(encoders[0], pictures[0]) == find_sensitive_block(encoders[1], pictures[1])
    small_stake, large_stake = (
        measure_stakes(*pair, Scheme(), profile)
        for *pair, profile in zip(encoders, pictures, (short, long), strict=True)
    )
    np.testing.assert_allclose(large_stake.plain, small_stake.plain, rtol=0.05)
    assert small_stake.plain > 0


@pytest.mark.slow
def test_patches_are_read_line_by_line_and_deleted_ones_are_filled_in_alike_in_both_forms():
    encoder, sheets = small.encoder("naflex"), small.sheets(5)
    patches, there = encode_patches(encoder, sheets), np.asarray(grids_of(sheets).there)
    np.testing.assert_array_equal(np.abs(patches).max(axis=-1) > 0, there)
    np.testing.assert_allclose(encode_patches(encoder, alone(1))[0], patches[1, :18], **CLOSE)
    deleting = encoder.with_plan(small.plan(2))
    found, spec = encode_patches(deleting, sheets), encoder.spec.image
    searched = image_features(encoder.params.image, sheets, spec, plan=deleting.plan)
    assert int(searched.present.sum()) == there.sum() - 2 * len(sheets)
    np.testing.assert_allclose(found, patch_tokens(searched, spec, sheets), **CLOSE)
    np.testing.assert_array_equal(np.abs(found).max(axis=-1) > 0, there)
    with pytest.raises(UserError, match="without deletion"):
        patch_tokens(encode(deleting, sheets), spec)


@pytest.mark.slow
def test_what_fills_a_deleted_patch_of_a_sheet_is_what_fills_it_in_a_square():
    patches, rng = jax.random.normal(jax.random.key(0), (3, 16, 5)), np.random.default_rng(0)
    kept = jnp.asarray(rng.uniform(size=(3, 16)) > [[0.2], [0.6], [0.93]])  # of the last nearly nothing is left
    places = jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), (3, 16))
    lines = jnp.pad(patches, ((0, 0), (0, 4), (0, 0)), constant_values=7.0)
    found = fill_lines(
        lines, *(jnp.pad(each, ((0, 0), (0, 4))) for each in (kept, kept | True)),
        jnp.pad(jnp.stack([places // 4, places % 4]), ((0, 0), (0, 0), (0, 4)), mode="edge"),
    )  # fmt: skip
    np.testing.assert_allclose(found[:, :16], fill_absent(patches, kept, 4), rtol=1e-6, atol=1e-6)
    assert not np.asarray(found[:, 16:]).any()


@pytest.mark.slow
def test_padding_never_enters_a_rivals_prefix():
    short, long = (
        token_prefixes(small.encoder("naflex"), np.asarray(small.sheets(5, max_patches=count)), 0) for count in (20, 37)
    )
    for name, rows in short.items():
        np.testing.assert_allclose(long[name], rows, **CLOSE)
