"""Every form of the serving program against the plain one: other products, the same numbers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.plan import BlockRegister, Schedule, make_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import BlockSpec
from regcache_jax.encoders import catalog, forms
from regcache_jax.encoders.encoder import Encoder, encode, encode_image, init_params
from regcache_jax.encoders.forms import ATTENTION, PLAIN, Form, form_for
from regcache_jax.encoders.serving_program import prepare, serve
from regcache_jax.ops import attention_forms
from regcache_jax.ops.attention_forms import attend_flash, attend_kept, attend_pairs, attend_plain
from regcache_jax.quantization.quantize import quantize

HEADS, HEAD_DIM = 4, 8
BLOCKS = BlockSpec(
    width=HEADS * HEAD_DIM, num_blocks=3, num_heads=HEADS, mlp_width=40, activation="gelu", norm_eps=1e-6
)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


KINDS = [
    ("siglip", Form(folded_probe=True, outputs_first=True)),
    ("dinov2", Form(class_alone=True)),
    ("naflex", Form(folded_probe=True)),
]


def pictures(kind: str, count: int) -> jax.Array:
    """Pictures as an encoder takes them."""
    return (small.sheets if kind == "naflex" else small.images)(count)


@functools.cache
def encoder(kind: str) -> Encoder:
    """An int8 encoder of four heads, with registers of different weights a head and a deletion."""
    spec = small.SPECS[kind]
    blocks = dataclasses.replace(BLOCKS, padded=spec.image.blocks.padded)
    spec = dataclasses.replace(spec, image=dataclasses.replace(spec.image, blocks=blocks))
    params = init_params(spec, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * normal(leaf.size, *leaf.shape), params)
    copies = jnp.asarray(np.tile(np.float32([0.5, 3, 7, 20]), (BLOCKS.num_blocks, 1)))
    rows = normal(1, 2, BLOCKS.num_blocks, 2, HEADS, HEAD_DIM)
    plan = make_plan(*rows, copies=copies, start=1, delete_block=1, delete_count=3)
    return quantize(Encoder(params, spec=spec).with_plan(plan), pictures(kind, 8), Scheme())


@pytest.mark.slow
@pytest.mark.parametrize("attend", [attend_kept, attend_pairs, attend_flash])
@pytest.mark.parametrize("registers", [0, 2])
def test_what_padding_holds_is_of_no_matter_to_a_form(attend, registers):
    query, key, value = (normal(seed, 2, 16, HEADS, HEAD_DIM) for seed in (0, 1, 2))
    register = BlockRegister(*normal(4, 2, 2, HEADS, HEAD_DIM), normal(5, 2, 1)) if registers else None
    hidden = (jnp.arange(16, dtype=jnp.int32) >= 11)[:, None, None]
    loud = [jnp.where(hidden, 1e4 * query[:, :1], each) for each in (key, value)]  # a logit that none else comes near
    calm, found = (attend(query, *each, 11, register, jnp.float32) for each in ((key, value), loud))
    np.testing.assert_array_equal(found, calm)


@pytest.mark.slow
@pytest.mark.parametrize("present", [None, np.array([[True] * 16, [True, False, True, True] * 4])])
@pytest.mark.parametrize("weights", ["none", "shared", "a head each"])
@pytest.mark.parametrize("rows", [16, 11, 12])  # room for both registers, for none, for one of them
def test_attention_of_every_form_is_that_of_the_plain_one(weights, present, rows):
    query, key, value = (normal(seed, 2, 16, HEADS, HEAD_DIM) for seed in (0, 1, 2))
    register = None
    if weights != "none":
        bias = normal(5, 2, 1 if weights == "shared" else HEADS)
        register = BlockRegister(*normal(4, 2, 2, HEADS, HEAD_DIM), bias)
    present = None if present is None else jnp.asarray(present & (np.arange(16) < 11))
    plain = attend_plain(query, key, value, 11, register, jnp.float32, present)[:, :rows]
    query, key, value = (array[:, :rows] for array in (query, key, value))
    present = None if present is None else present[:, :rows]
    for attend in (attend_kept, attend_flash):
        found = attend(query, key, value, 11, register, jnp.float32, present)
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)  # float32, sums in another order

    def paired(array):
        return array.reshape(*array.shape[:-2], HEADS // 2, 2 * HEAD_DIM)

    if register is not None:
        register = register.replace(key=paired(register.key), value=paired(register.value))
    pairs = attend_pairs(paired(query), paired(key), paired(value), 11, register, jnp.float32, present)
    np.testing.assert_allclose(pairs.reshape(plain.shape), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1.0, 50.0, 2000.0])
def test_registers_behind_flash_attention_are_as_exact_in_bfloat16_as_the_plain_rows(copies):
    """Whether tokens or the register have most of a query's attention."""
    query, key, value = (normal(seed, 2, 40, HEADS, HEAD_DIM) for seed in (0, 1, 2))
    register = BlockRegister(*normal(4, 2, 1, HEADS, HEAD_DIM), jnp.full((1, HEADS), np.log(copies), jnp.float32))
    exact = attend_plain(query, key, value, 39, register, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention of bfloat16 wants it
        plain, found = (
            jax.jit(lambda *rows, attend=attend: attend(*rows, 39, register, jnp.bfloat16))(query, key, value)
            for attend in (attend_plain, attend_flash)
        )
    lost_plain, lost = (float(jnp.linalg.norm(each.astype(jnp.float32) - exact)) for each in (plain, found))
    assert lost <= 1.25 * lost_plain


@pytest.mark.slow
@pytest.mark.parametrize("attend", [attend_kept, attend_pairs])
def test_queries_in_chunks_attend_as_all_at_once(attend, monkeypatch):
    query, key, value = (normal(seed, 2, 21, HEADS, HEAD_DIM) for seed in (0, 1, 2))
    register = BlockRegister(*normal(4, 2, 2, HEADS, HEAD_DIM), normal(5, 2, 1))
    present = jnp.asarray(np.random.default_rng(3).random((2, 21)) < 0.8)
    whole = [attend(query, key, value, 19, register, jnp.float32, each) for each in (None, present)]
    monkeypatch.setattr(attention_forms, "ON_CHIP", 100)
    monkeypatch.setattr(attention_forms, "CHUNK", 8 * 2 * 21 * HEADS)  # three chunks of eight, the last of five
    lowered = jax.jit(lambda query: attend(query, key, value, 19, register, jnp.float32)).lower(query).as_text()
    assert "while" in lowered
    chunked = [attend(query, key, value, 19, register, jnp.float32, each) for each in (None, present)]
    for found, wanted in zip(chunked, whole, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@functools.cache
def features(kind: str, form: Form, dtype=jnp.float32) -> np.ndarray:
    own = encoder(kind).astype(dtype)
    spec, schedule, scheme = own.spec.image, own.schedule, own.scheme
    assert isinstance(schedule, Schedule)
    weights = prepare(own.params.image, scheme, own.plan, form)
    run = jax.jit(lambda weights, images: serve(weights, images, spec, schedule, scheme, form).features)
    return np.asarray(run(weights, jnp.asarray(pictures(kind, 4), dtype)), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("attention", list(ATTENTION))
@pytest.mark.parametrize(("kind", "form"), KINDS)
def test_an_int8_encoder_gives_the_same_features_in_every_form(kind, form, attention):
    form = dataclasses.replace(form, attention=attention)
    plain, found = features(kind, PLAIN), features(kind, form)
    # a sum in another order may put an integer on the other side of its boundary: one step of 1/127
    step = np.abs(plain).max() / 127
    assert np.abs(found - plain).max() <= step and np.median(np.abs(found - plain)) <= 1e-4 * step + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["kept", "pairs"])
def test_where_logits_are_many_a_register_makes_keys_longer_and_no_other_row(attention, monkeypatch):
    plain, form = features("siglip", PLAIN), Form(attention)
    register = BlockRegister(*normal(4, 2, 2, HEADS, HEAD_DIM), normal(5, 2, 1))
    assert [form.rows_for(register, tokens, 16) for tokens in (729, 4096)] == [2, 0]
    monkeypatch.setattr(forms, "CHUNK", 0)
    assert PLAIN.rows_for(register, 4096, 16) == 2 and form.rows_for(None, 4096, 16) == 0
    step = np.abs(plain).max() / 127  # as above
    assert np.abs(features.__wrapped__("siglip", form) - plain).max() <= step


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
def test_in_bfloat16_a_form_turns_features_little_more_than_the_plain_one(kind):
    form = Form("pairs", folded_probe=kind == "siglip", class_alone=kind == "dinov2")
    wide = features(kind, PLAIN)

    def turned(found):
        """How far features turn away from those of float32: one less the cosine."""
        return 1 - np.sum(wide * found, -1) / np.linalg.norm(wide, axis=-1) / np.linalg.norm(found, axis=-1)

    plain, found = turned(features(kind, PLAIN, jnp.bfloat16)), turned(features(kind, form, jnp.bfloat16))
    assert found.mean() <= 2 * plain.mean() and found.max() < 1e-3  # bfloat16 has steps of 4e-3


@pytest.mark.slow
def test_an_encoder_prepared_for_a_chip_gives_its_features_and_all_its_tokens():
    own = encoder("dinov2")
    plain, formed = own.prepared(), own.prepared("v5p")
    assert plain.form == PLAIN and formed.form == Form(class_alone=True)
    images = small.images(2)
    np.testing.assert_allclose(
        encode_image(formed, images), encode_image(plain, images), atol=1e-2
    )  # one integer's step
    np.testing.assert_array_equal(encode(formed, images).tokens, encode(plain, images).tokens)


def test_a_form_is_chosen_by_chip_shape_and_scheme():
    base = catalog.get("google/siglip-base-patch16-224").spec.image
    largest = catalog.get("google/siglip-so400m-patch14-384").spec.image
    clip = catalog.get("openai/clip-vit-large-patch14").spec.image
    sheets = catalog.get("google/siglip2-base-patch16-naflex").spec.image
    assert form_for("v5e", sheets, Scheme()) == Form("pairs", folded_probe=True)
    assert form_for("gpu", sheets, Scheme()) == PLAIN
    assert form_for("v5e", base, Scheme()) == Form("pairs", folded_probe=True)
    assert form_for("v6e", largest, Scheme()) == Form("kept", folded_probe=True)  # heads of 72
    assert form_for("v5p", clip, Scheme()) == Form("slot", class_alone=True)
    assert form_for("gpu", base, Scheme()) == Form("flash", folded_probe=True, outputs_first=True)
    assert form_for("gpu", clip, None) == Form("flash", class_alone=True)
    long = catalog.get("google/gemma-3-4b-it").spec.image
    assert form_for("v5e", long, None) == form_for("v6e", long, Scheme()) == Form("kept")  # queries in chunks
    assert form_for("v5p", long, None) == PLAIN
    assert form_for("v5e", base, None) == form_for(None, base, Scheme()) == PLAIN
    assert (
        form_for("v5e", base, Scheme(activations="token")) == form_for("v5e", base, Scheme(products=("pv",))) == PLAIN
    )
    assert form_for("v5e", clip, Scheme()).name == "pairs, class alone"
