"""Model folders as transformers loads them: its features are ours, in float and in int8, and the folders come back as they went."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import torch
import transformers
from compressed_tensors.quantization.lifecycle import forward
from randomized import SIGLIP_TEXT, SMALL, clip, save_random, siglip
from regcache_jax.converters.conversion import read_checkpoint
from regcache_jax.converters.huggingface_folder import write_folder
from regcache_jax.converters.scales import scale_lines
from safetensors.numpy import load_file, save_file
from transformers import CompressedTensorsConfig, conversion_mapping

from regcache_jax import converters
from regcache_jax.core.errors import UserError
from regcache_jax.core.names import to_names
from regcache_jax.core.scheme import Rule, Scheme
from regcache_jax.encoders.encoder import encode
from regcache_jax.evaluation.metrics import cosines
from regcache_jax.quantization.kernels import simulated_kernels
from regcache_jax.quantization.quantize import quantize

DINO = {**SMALL, "mlp_ratio": 2, "image_size": 40, "patch_size": 8}
del DINO["intermediate_size"]
NETWORKS = {
    "clip": clip,
    "siglip": siglip,
    "siglip 2": functools.partial(siglip, text={**SIGLIP_TEXT, "vocab_size": 140}),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINO)),
    "dinov2 with registers, gated": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**{**DINO, "mlp_ratio": 4}, use_swiglu_ffn=True, num_register_tokens=2)
    ),
}
SCHEMES = {
    "static": Scheme(),
    "smoothquant+erq": Scheme(method="smoothquant+erq"),
    "erq": Scheme(method="erq"),
    "smoothquant_norms": Scheme(method="smoothquant_norms"),
    "some in float": Scheme(rules=(Rule(("fc2",), (1,), quantized=False),), float_sites=("out",)),
    "token": Scheme(activations="token"),
}


@functools.cache
def floats(kind: str, folder):
    encoder = read_checkpoint(str(save_random(NETWORKS[kind](), folder / "source"))).encoder
    return jax.tree.map(jnp.asarray, encoder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("folders")


def encoder_of(kind: str, root):
    (root / kind).mkdir(exist_ok=True)
    return floats(kind, root / kind)


def pictures(encoder, count=8):
    side = encoder.spec.image.image_size
    return np.random.default_rng(0).normal(size=(count, side, side, 3)).astype(np.float32)


@jax.jit
def ours(encoder, images):
    return encode(encoder, images).features


@functools.cache
def quantized_of(kind, scheme, root):
    """One that several tests look at."""
    encoder = encoder_of(kind, root)
    return quantize(encoder, pictures(encoder), SCHEMES[scheme])


@contextlib.contextmanager
def no_conversions(name):
    """transformers 5.23 fails on any compressed Dinov2Model that is not gated (it would split the gate's scales), unless it has nothing to
    convert, as our spelling of names needs nothing."""
    known = conversion_mapping.get_checkpoint_conversion_mapping(name)
    conversion_mapping.register_checkpoint_conversion_mapping(name, [], overwrite=True)
    yield
    conversion_mapping.register_checkpoint_conversion_mapping(name, known, overwrite=True)


def theirs(folder, kind, images, **options):
    """What transformers gives, from a folder alone."""
    with no_conversions("Dinov2Model"):
        network, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, **options)
    info["unexpected_keys"] = [name for name in info["unexpected_keys"] if not options or "input_scale" not in name]
    assert not any(info.values()), info  # floats alone have no use for the scales of inputs
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if "dinov2" in kind:
            return network(pixels).pooler_output.numpy()
        ids = torch.full((len(images), 4), 119)
        network(pixel_values=pixels, input_ids=ids)  # the first whole pass makes floats of stored integers
        return network.get_image_features(pixels).pooler_output.numpy()


def assert_same(found, wanted, median=0.99999, least=0.9999):
    """The same features, but for ties: a value halfway between two integers goes where the last bit of a sum sends it, in few pictures.
    What is done otherwise moves all."""
    found = cosines(found, np.asarray(wanted))
    assert np.median(found) >= median and found.min() >= least, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_transformers_gives_our_features_of_a_float_folder(kind, root, tmp_path):
    encoder = encoder_of(kind, root)
    images = pictures(encoder)
    write_folder(encoder, tmp_path / "folder")
    wanted = np.asarray(ours(encoder, images))
    np.testing.assert_allclose(theirs(tmp_path / "folder", kind, images), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        *((kind, "static") for kind in NETWORKS),
        ("dinov2 with registers, gated", "smoothquant+erq"),
        ("siglip", "erq"),
        ("siglip", "smoothquant_norms"),
        ("dinov2", "some in float"),
        ("clip", "token"),
    ],
)
def test_transformers_gives_our_int8_features_and_the_folder_comes_back_as_it_went(
    kind, scheme, root, tmp_path, monkeypatch
):
    quantized = quantized_of(kind, scheme, root)
    images = pictures(quantized)
    write_folder(quantized, tmp_path / "folder")
    # What passes a range is -128 there and -127 here: methods that change weights after ranges were taken let it happen.
    monkeypatch.setattr(forward, "calculate_range", lambda *_: (torch.tensor(-127.0), torch.tensor(127.0)))
    found = theirs(tmp_path / "folder", kind, images)
    # Per token they divide by 127.5 where we divide by 127: another rounding of everything. With the gate's products a tie moved a
    # picture by 0.0004.
    bounds = {"token": (0.9998, 0.999), "smoothquant+erq": (0.99999, 0.9995)}.get(scheme, ())
    assert_same(found, ours(quantized, images), *bounds)
    back = read_checkpoint(str(tmp_path / "folder")).encoder
    assert dataclasses.replace(back.scheme, method="rtn") == dataclasses.replace(quantized.scheme, method="rtn")
    found, wanted = to_names(back.params), to_names(quantized.params)
    assert found.keys() == wanted.keys()
    if scheme == "some in float":  # of a block whose fc2 is not rounded nobody asks the scale
        wanted["image/blocks/input_scale/fc2"] = wanted["image/blocks/input_scale/fc2"].at[1].set(1.0)
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip 2"])
def test_decompressed_by_transformers_weights_give_what_ours_give_with_float_activations(kind, root, tmp_path):
    encoder = encoder_of(kind, root)
    images = pictures(encoder)
    write_folder(quantized_of(kind, "static", root), tmp_path / "folder")
    image = encoder.params.image
    stood_for = encoder.replace(
        params=encoder.params.replace(image=image.replace(blocks=simulated_kernels(image.blocks, Scheme())))
    )
    wanted = np.asarray(ours(stood_for, images))
    with pytest.warns(
        UserWarning, match="already has a `quantization_config`"
    ):  # theirs, of which this changes one field
        found = theirs(tmp_path / "folder", kind, images, quantization_config=CompressedTensorsConfig(dequantize=True))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_an_integer_text_tower_travels_too(root, tmp_path):
    encoder = encoder_of("clip", root)
    ids = np.full((4, 11), 119, np.int32)
    ids[:, 0], ids[:, 1] = 118, np.arange(4)
    quantized = quantize(encoder, pictures(encoder), Scheme(also=("text",)), texts=ids)
    write_folder(quantized, tmp_path / "folder")
    back = read_checkpoint(str(tmp_path / "folder")).encoder
    assert back.scheme == quantized.scheme
    network = transformers.AutoModel.from_pretrained(tmp_path / "folder")
    with torch.no_grad():
        pixels = torch.tensor(pictures(encoder, 4).transpose(0, 3, 1, 2))
        found = network(pixel_values=pixels, input_ids=torch.tensor(ids)).text_embeds.numpy()
    from regcache_jax.encoders.text import text_features

    wanted, _ = text_features(quantized.params.text, jnp.asarray(ids), quantized.spec.text, scheme=quantized.scheme)
    assert_same(found, wanted)


@pytest.fixture(scope="module")
def few():
    """A small encoder and pictures for it."""
    return small.encoder("clip with text"), np.asarray(small.images(8))


@pytest.mark.slow
def test_what_cannot_be_expressed_is_refused_by_name(few, tmp_path):
    encoder, images = few
    for quantized, message in (
        (
            quantize(encoder.with_plan(small.plan(2)), images, Scheme()),
            r"registers \(no block.*; the deletion of 2 tokens",
        ),
        (quantize(encoder, images, Scheme(symmetric=False)), r"zero points \(qkv, out, fc1, fc2 of the image tower\)"),
        (quantize(encoder, images, Scheme(method="smoothquant")), "a change of units in front of fc2"),
        (quantize(encoder, images, Scheme(4, 8)), r"w4a8 sites \(w8a8 is written\)"),
        (quantize(encoder, images, Scheme(activations="group")), "group activation scales"),
        (quantize(encoder, images, Scheme(products=("qk",))), r"integer products of attention \(qk\)"),
        (quantize(encoder, images, Scheme(method="rotation")), "a rotated residual stream"),
        (quantize(small.encoder("siglip"), images, Scheme(also=("head",))), "an integer pooling head"),
        (small.encoder("dinov2-swiglu"), "have no name in the layout asked for: .*mlp/gate/kernel"),
    ):
        with pytest.raises(UserError, match=message):
            write_folder(quantized, tmp_path / "folder")
        assert not (tmp_path / "folder").exists()


def test_a_filter_that_transformers_has_not_is_named(few, tmp_path):
    spec = few[0].spec
    tensorflow, lanczos = (
        few[0].replace(
            spec=dataclasses.replace(spec, preprocessing=dataclasses.replace(spec.preprocessing, filter=name))
        )
        for name in ("bilinear_tf", "lanczos")
    )
    with pytest.raises(
        UserError, match=r"resizes pictures by bilinear_tf; transformers has lanczos, bilinear, bicubic"
    ):
        write_folder(tensorflow, tmp_path / "tf")
    assert (
        json.loads((write_folder(lanczos, tmp_path / "folder") / "preprocessor_config.json").read_text())["resample"]
        == 1
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda group: group["weights"].update(num_bits=4), "weights num_bits 4"),
        (lambda group: group["weights"].update(strategy="group"), "weights strategy 'group'"),
        (lambda group: group["input_activations"].update(symmetric=False), "input_activations symmetric False"),
        (lambda group: group["input_activations"].update(dynamic=True), "input_activations 'tensor', dynamic True"),
        (lambda group: group.update(input_activations=None), "input_activations None"),
    ],
)
def test_other_kinds_of_compressed_folders_are_refused_by_what_they_have(root, tmp_path, change, message):
    folder = compressed_folder(root, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"]["config_groups"]["group_0"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_checkpoint(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, block: tensors.pop(f"{block}.q_proj.input_scale"), "q_proj has no input_scale"),
        (lambda tensors, block: tensors[f"{block}.q_proj.input_scale"].__imul__(2), "have different scales for it"),
        (
            lambda tensors, block: tensors.update(
                {f"{block}.q_proj.weight": tensors[f"{block}.q_proj.weight"].astype(np.float32)}
            ),
            "should be int8",
        ),
    ],
)
def test_a_compressed_folder_whose_tensors_do_not_fit_is_refused(root, tmp_path, change, message):
    folder = compressed_folder(root, tmp_path)
    tensors = {name: array.copy() for name, array in load_file(folder / "model.safetensors").items()}
    change(tensors, "vision_model.encoder.layers.1.self_attn")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        read_checkpoint(str(folder))


def compressed_folder(root, tmp_path):
    return write_folder(quantized_of("siglip", "static", root), tmp_path / "folder")


@pytest.mark.slow
def test_the_command_writes_a_folder_and_takes_it_back(regcache, root, tmp_path):
    from regcache_jax.models.folder import load, save

    quantized = quantized_of("siglip", "static", root)
    model = save(tmp_path / "int8", quantized)
    status, out, err = regcache("convert", model, "--to", "huggingface", "--out", tmp_path / "folder")
    assert status == 0 and "folder" in out, err
    status, _, err = regcache("convert", tmp_path / "folder", "--out", tmp_path / "back")
    assert status == 0, err
    images = pictures(quantized)
    np.testing.assert_array_equal(ours(load(tmp_path / "back").encoder, images), ours(load(model).encoder, images))
    status, _, err = regcache("convert", model, "--to", "scales", "--out", tmp_path / "scales.jsonl")
    assert status == 0 and len((tmp_path / "scales.jsonl").read_text().splitlines()) == 3 * 4, err


@pytest.mark.slow
def test_scales_are_a_line_a_site_and_say_what_shares_them(few, tmp_path):
    encoder, images = few
    lines = list(scale_lines(quantize(encoder, images, Scheme(products=("qk",)))))
    assert [line["site"] for line in lines[:6]] == ["qkv", "out", "fc1", "fc2", "query", "key"]
    assert lines[0]["layers"] == ["attention/query", "attention/key", "attention/value"] and lines[0]["largest"] == 127
    quantized = quantize(encoder, images, Scheme(activations="group", rules=(Rule(("fc1",), (0,), quantized=False),)))
    lines = list(scale_lines(quantized))
    assert len(lines) == 3 * 4 - 1 and set(lines[0]["scale"]) == {"class_token", "trained_registers", "patches"}
    shifted = next(scale_lines(quantize(encoder, images, Scheme(symmetric=False))))
    assert isinstance(shifted["offset"], float)
    with pytest.raises(UserError, match="has no calibrated scales"):
        converters.write(encoder, "scales", tmp_path / "scales.jsonl")
