"""Python's door: what is given wrongly is refused with what to do; names, files and iterables stand where objects are wanted."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import small

import regcache_jax as rc
from regcache_jax import door
from regcache_jax.core.scheme import Rule
from regcache_jax.data.dataset import Dataset, Example

ENCODER = small.encoder()
ROWS = np.ones((3, 1, 3, 8), np.float32)
IMAGES = np.asarray(small.images(5))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.transpose(0, 3, 1, 2), r"channels come last; give np\.transpose\(images, \(0, 2, 3, 1\)\)"),
        (IMAGES[0], r"this is one picture: give images\[None\]"),
        (IMAGES[:, :8], r"\[n, 16, 16, 3\], got \[5, 8, 16, 3\]; `model\.preprocess"),
        (np.zeros((2, 16, 16, 3), np.uint8), "as floats, got uint8; if these are bytes"),
        (128 + 100 * IMAGES, "preprocessed ones at most 1; if these are bytes"),
        (np.where(IMAGES > 0.99, np.nan, IMAGES), "holds NaN or infinity"),
        (3, "expected preprocessed pictures .* or a dataset, got int"),
        (iter(()), "the iterable is empty"),
    ],
)
@pytest.mark.parametrize("verb", ["encode_image", "search"])
def test_pictures_that_are_not_as_the_encoder_takes_them_are_refused(verb, images, message):
    with pytest.raises(rc.UserError, match=message):
        getattr(rc, verb)(ENCODER, images, *([rc.Scheme()] if verb == "search" else []))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rc.search(ENCODER, IMAGES, "w9a9"), "unknown scheme 'w9a9'"),
        (lambda: rc.search(ENCODER, IMAGES, "float"), "quantises nothing"),
        (lambda: rc.search(ENCODER, IMAGES, {"weight_bit": 8}), "Scheme has no weight_bit; did you mean weight_bits"),
        (lambda: rc.search(ENCODER, IMAGES, "w8a8", {"copy": 1}), "SearchConfig has no copy; did you mean copies"),
        (lambda: rc.search(ENCODER, IMAGES, "w8a8", confg={}), r"rc\.search has no confg; did you mean config"),
        (lambda: rc.refine(ENCODER, IMAGES, "w8a8", plan=3), r"expected a register plan .* got int"),
        (lambda: rc.quantize("nowhere", IMAGES, "w8a8"), "nowhere"),
        (lambda: rc.inspect(3, IMAGES), "expected an encoder .* got int"),
        (lambda: rc.SearchConfig(copy=1), "SearchConfig has no copy; did you mean copies"),
        (lambda: rc.Scheme(weight_bit=8), "Scheme has no weight_bit; did you mean weight_bits"),
        (lambda: Rule(site="qkv"), "Rule has no site; did you mean sites"),
        (lambda: rc.make_plan(ROWS[0], ROWS[0]), r"both be \[L, R, H, K\] .* got \[1, 3, 8\] and \[1, 3, 8\]"),
        (lambda: rc.make_plan(ROWS, ROWS[:, :, :2]), r"got \[3, 1, 3, 8\] and \[3, 1, 2, 8\]"),
        (lambda: rc.make_plan("rows", ROWS), r"expected keys and values \[L, R, H, K\], got rows"),
        (lambda: rc.make_plan(ROWS, ROWS, start=1.5), "start must be a whole number, got 1.5"),
        (lambda: rc.make_plan(ROWS, ROWS, strat=1), r"rc\.make_plan has no strat; did you mean start"),
        (lambda: rc.make_plan(ROWS, ROWS, copies=[1.0, 2.0]), r"copies must be .* shape \[L\]"),
        (lambda: ENCODER.with_plan(rc.make_plan(ROWS[:2], ROWS[:2])), "is for 2 blocks of 3 heads of 8; clip has 3"),
        (lambda: rc.judge(ENCODER), r"expected a profile .* got Encoder"),
        (lambda: rc.save(3, ENCODER), "expected a path, got int"),
        (lambda: rc.save(__file__, ENCODER), "exists already"),
        (lambda: rc.save(f"{__file__}/model", ENCODER), r"test_door\.py is a file, no folder"),
        (lambda: rc.save("model", ROWS), "expected an encoder"),
        (lambda: rc.load(__file__), "is not a model folder"),
        (lambda: rc.load(None), "expected a path, got NoneType"),
        (lambda: rc.load_plan(__file__), "is not a readable register plan"),
        (lambda: rc.save_plan("plan", ROWS), "expected a register plan"),
        (lambda: rc.encode_text(ENCODER, ["a cat"]), r"model\.tokenize\(texts\)"),
    ],
)
def test_names_that_are_misspelt_and_objects_of_another_kind_are_refused(call, message):
    with pytest.raises(rc.UserError, match=message):
        call()


def test_a_name_a_dictionary_and_a_model_stand_where_objects_are_wanted():
    assert door.as_scheme("w4a4") == rc.Scheme(4, 4) == door.as_scheme({"weight_bits": 4, "activation_bits": 4})
    assert door.as_config({"rounds": 3}, rc.SearchConfig) == rc.SearchConfig(rounds=3)
    model = rc.load(rc.bundled_model())
    assert door.as_encoder(model) is model.encoder
    assert door.as_encoder(str(rc.bundled_model())).spec == model.encoder.spec


def test_datasets_pictures_and_iterables_become_the_array():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
    dataset = Dataset("own", "all", 3, lambda index: Example(pixels[index], None, str(index)))
    assert door.as_images(dataset, ENCODER.spec, "array").shape == (3, 16, 16, 3)
    for value in (iter(IMAGES), [IMAGES[:2], IMAGES[2:]], ((part, np.ones(len(part), bool)) for part in (IMAGES,))):
        np.testing.assert_array_equal(door.as_images(value, ENCODER.spec, "array"), IMAGES)
    filled = np.concatenate([IMAGES, IMAGES[-1:]]), np.arange(6) < 5
    (batch,) = door.as_images([filled], ENCODER.spec, "batches")
    np.testing.assert_array_equal(batch, IMAGES)
    ((batch, mask),) = door.as_images([filled], ENCODER.spec, "masked")
    assert len(batch) == 6 and mask.sum() == 5


@pytest.mark.slow
def test_a_verb_is_compiled_as_before():
    plain = jax.jit(rc.encode_image)(ENCODER, IMAGES)
    np.testing.assert_allclose(plain, rc.encode_image(ENCODER, IMAGES), rtol=1e-4, atol=1e-5)
    assert rc.encode_image is rc.encode_image and rc.search.__doc__
