from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import SITES, Rule, Scheme
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.encoders.rounding import Run, dense
from regcache_jax.quantization.quantize import quantize

encode = jax.jit(encode_image)


def test_the_first_rule_that_matches_decides():
    scheme = Scheme(
        4, 4, rules=(Rule(("fc2",), (1,), quantized=False), Rule(("fc2",), None, 8, 6), Rule(("fc2", "out"), None, 3))
    )
    assert scheme.at("fc2", 1).quantized is False
    assert scheme.at("fc2", 0) == (8, 6, True)
    assert scheme.at("out", 0) == (3, 4, True)
    assert scheme.at("qkv", 0) == (4, 4, True)


def test_segments_say_the_same_without_block_numbers():
    scheme = Scheme(rules=(Rule(("fc2",), (1, 2), quantized=False), Rule(("qkv",), (2, 3), 4)))
    pieces = scheme.segments(0, 6)
    assert [piece[:2] for piece in pieces] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6)]
    for first, last, own in pieces:
        assert all(own.at(site) == scheme.at(site, block) for block in range(first, last) for site in SITES)
    assert Scheme().segments(2, 5) == [(2, 5, Scheme())]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rules",
    [(Rule(("out",), (7,)),), (Rule(("out",)), Rule(("out",), (1,))), (Rule(()),)],
    ids=["block", "shadowed", "no site"],
)
def test_a_rule_that_matches_nothing_is_an_error(rules):
    with pytest.raises(UserError, match="matches nothing"):
        quantize(small.encoder(), None, Scheme(activations="token", rules=rules))


def test_a_scheme_with_rules_survives_json():
    scheme = Scheme(6, 4, symmetric=False, estimator="mse", method="gptq").keep_in_float([("fc2", 1), ("qkv", 0)])
    assert Scheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


def test_wrong_combinations_are_refused():
    for options, message in (
        ({"symmetric": False, "activations": "token"}, "asymmetric"),
        ({"estimator": "mse", "activations": "tensor"}, "estimator"),
        ({"percentile": 0.0}, "percentile"),
    ):
        with pytest.raises(UserError, match=message):
            Scheme(**options)
    with pytest.raises(UserError, match="sites"):
        Rule(("conv",))


def test_a_scheme_by_name():
    assert Scheme.named("w4") == Scheme(weight_bits=4, activations="float")
    assert (Scheme.named("w4").name, Scheme(6, 4).name) == ("w4", "w6a4")


@pytest.mark.slow
def test_sites_left_in_float_in_some_blocks_run_in_float_there_and_nowhere_else():
    encoder, images = small.encoder("clip"), small.images(8)
    everything = tuple((site, block) for site in SITES for block in (0, 2))
    scheme = Scheme(4, 4).keep_in_float(everything)
    quantized = quantize(encoder, images, scheme)
    fc2 = quantized.params.image.blocks.mlp.fc2
    np.testing.assert_array_equal(fc2.float_kernel, encoder.params.image.blocks.mlp.fc2.kernel[jnp.array([0, 2])])
    assert not fc2.kernel.values[0].any() and fc2.kernel.values[1].any()
    whole = quantize(encoder, images, scheme.keep_in_float((site, 1) for site in SITES))
    np.testing.assert_allclose(encode(whole, images), encode(encoder, images), atol=1e-5)  # every block in float
    assert not np.allclose(encode(quantized, images), encode(encoder, images), atol=1e-3)
    plan = small.plan(2)
    for each in (encoder.with_plan(plan), quantize(encoder, images, scheme, plan)):
        assert np.isfinite(encode(each, images)).all()


@pytest.mark.slow
def test_zero_points_are_folded_into_the_bias_by_hand():
    encoder, images = small.encoder("siglip"), small.images(16)
    quantized = quantize(encoder, images, Scheme(8, 8, symmetric=False))
    blocks = quantized.params.image.blocks
    scale, offset = float(blocks.grids.fc2.scale[1]), float(blocks.grids.fc2.offset[1])
    zero_point = offset / scale
    assert abs(zero_point - round(zero_point)) < 1e-4 and zero_point < -20  # GELU: far more above zero than below
    inputs = np.random.default_rng(0).uniform(-0.2, 2.0, (1, 3, 40)).astype(np.float32)
    stored = np.clip(np.round((inputs.astype(np.float64) + offset) / scale), -127, 127)
    weight = np.asarray(blocks.mlp.fc2.kernel.dequantize()[1], np.float64)
    bias = np.asarray(encoder.params.image.blocks.mlp.fc2.bias[1], np.float64)
    expected = (stored - round(zero_point)) * scale @ weight + bias
    block = jax.tree.map(lambda leaf: leaf[1], blocks)
    (found,) = dense(
        jnp.asarray(inputs), (block.mlp.fc2,), "fc2", Run(encoder.spec.image.blocks, quantized.scheme), block.grids.fc2
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=2e-5)  # float32 beside float64


SCHEMES = {
    "static": Scheme(),
    "asymmetric": Scheme(symmetric=False),
    "group": Scheme(6, 6, "group"),
    "tensor": Scheme(4, 4, "tensor"),
    "token": Scheme(activations="token"),
    "rules": Scheme(rules=(Rule(("fc2",), (1,), quantized=False),)),
    "noisyquant": Scheme(method="noisyquant"),
    "rotation": Scheme(method="rotation"),
    "ptq4vit": Scheme(method="ptq4vit", products=("qk", "pv")),
    "products": Scheme(6, 6, products=("qk", "pv"), symmetric=False),
    "half octaves": Scheme(4, 4, products=("qk", "pv"), softmax="log-sqrt2"),
}
FLOATS = {"rotation": 6, "rules": 9, "ptq4vit": 2, "products": 2, "half octaves": 2}
INTEGERS = {"rules": 17, "ptq4vit": 6 + 1 + 1 + 2, "products": 6 + 2, "half octaves": 6 + 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_multiplies_int8_by_int8_into_int32_and_stores_int8(name):
    encoder, images = small.encoder("clip"), small.images(8)
    quantized = quantize(encoder, images, SCHEMES[name])
    text = jax.jit(lambda images: encode_image(quantized, images)).lower(images).as_text()
    integer = [line for line in text.splitlines() if "dot_general" in line and "xi8>" in line]
    floats = [line for line in text.splitlines() if "dot_general" in line and "xi8>" not in line]
    # q, k, v, out, fc1, fc2 in one scan; rules: three scans, one of them without fc2; twin: fc2 and p v twice
    assert len(integer) == INTEGERS.get(name, 6)
    assert all("xi8>" in line and "xi32>" in line for line in integer)
    # in float: patches, q k^T and p v of each scan, the projection, a rotation forth and back, fc2 where a rule says so
    assert len(floats) == FLOATS.get(name, 4)
    kernels = quantized.params.image.blocks.mlp.fc1.kernel.values
    assert kernels.dtype == jnp.int8


@pytest.mark.slow
def test_weights_alone_are_int8_and_multiply_as_floats():
    encoder, images = small.encoder("clip"), small.images(8)
    quantized = quantize(encoder, None, Scheme.named("w8"))
    assert quantized.params.image.blocks.mlp.fc1.kernel.values.dtype == jnp.int8
    np.testing.assert_allclose(
        encode(quantized, images), encode(encoder, images), atol=0.02
    )  # 8-bit rounding of weights
    assert not np.array_equal(encode(quantized, images), encode(encoder, images))


def integer_products(text):
    lines = [line for line in text.splitlines() if "dot_general" in line and "xi8>" in line]
    return [line.rsplit(" : ", 1)[1].split("->") for line in lines]


WITH_EIGHT = ("tensor", "ptq4vit", "rules")  # one scale an array, the methods' own sites, several scans
EVERY = [pytest.param(name, marks=pytest.mark.devices) if name in WITH_EIGHT else name for name in SCHEMES]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_pmap_sharded_jit_and_one_device_agree(name):
    images = small.images(16)
    plan = small.plan(0 if name == "rotation" else 2)
    quantized = quantize(small.encoder("dinov2"), images, SCHEMES[name], plan)
    texts = [jax.jit(encode_image).lower(quantized, images).as_text()]
    by_device = jax.pmap(encode_image, in_axes=(None, 0))
    shares = images.reshape(len(jax.devices()), -1, *images.shape[1:])
    texts.append(by_device.lower(quantized, shares).as_text())
    counts = {len(integer_products(text)) for text in texts}
    assert len(counts) == 1 and counts.pop() >= 6
    for text in texts:
        assert all(inputs.count("xi8>") == 2 and "xi32>" in output for inputs, output in integer_products(text))
    mapped = by_device(quantized, shares).reshape(16, -1)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = encode(quantized, jax.device_put(images, rows))
    together = encode(quantized, images)
    expected = together
    if name == "tensor":  # one scale an array is, under pmap, one for the pictures of each device
        expected = jnp.concatenate([encode(quantized, share) for share in shares])
    for found, wanted in ((sharded, together), (mapped, expected)):
        away = np.abs(np.asarray(found) - np.asarray(wanted)).max(axis=1)
        # batches of another size add up in another order, and a value at the edge between two integers may fall to either
        assert (away < 1e-5).mean() >= 0.8 and away.max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asymmetric", "ptq4vit"])
def test_an_exported_program_keeps_int8_and_gives_the_same_features(name):
    images = small.images(4)
    quantized = quantize(small.encoder("clip"), images, SCHEMES[name])
    exported = jax.export.export(jax.jit(lambda images: encode_image(quantized, images)))(images)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(images), encode(quantized, images), atol=1e-5)
    found = integer_products(exported.mlir_module())
    assert len(found) == INTEGERS.get(name, 6)
    assert all(inputs.count("xi8>") == 2 and "xi32>" in output for inputs, output in found)


@pytest.mark.slow
def test_folded_biases_and_offsets_stay_float32_in_a_bfloat16_encoder():
    quantized = quantize(small.encoder("clip"), small.images(8), Scheme(symmetric=False)).astype(jnp.bfloat16)
    blocks = quantized.params.image.blocks
    assert blocks.mlp.fc2.bias.dtype == blocks.grids.fc2.offset.dtype == jnp.float32
    assert blocks.norm1.scale.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(encode(quantized, small.images(2)), np.float32)).all()


def test_schemes_that_run_alike_share_a_program():
    found_differently = Scheme(4, 6, method="smoothquant+erq", symmetric=False, estimator="mse")
    assert found_differently.running == Scheme(8, 6)
    assert Scheme(8, 6).running != Scheme(8, 4).running != Scheme(8, 4, "token").running


@pytest.mark.slow
def test_a_method_name_is_part_of_the_scheme():
    assert dataclasses.replace(Scheme(), method="awq+gptq").to_json()["method"] == "awq+gptq"
