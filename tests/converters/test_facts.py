"""One source for each fact of a checkpoint: where two places state it and differ, both are named; no default stands in for evidence."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from randomized import clip, save_random, siglip
from regcache_jax.converters.conversion import read_checkpoint
from safetensors.torch import load_file, save_file

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import encode_image

PROCESSOR = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "resample": 3}


def read(folder, **options):
    return read_checkpoint(str(folder), **options)


def processor(folder, **changes):
    side = read(folder).encoder.spec.image.image_size
    sized = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **sized, **changes}))
    return side


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": {"height": 8, "width": 8}}, "the processor makes pictures of 8 px, the tower takes"),
        ({"crop_size": {"height": 64, "width": 64}}, "crop_size 64 is larger than size"),
        ({"crop_size": {"height": 16, "width": 8}}, "crop_size is 16 x 8"),
        ({"size": {"height": 16, "width": 8}}, "size is 16 x 8"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ({"do_center_crop": False}, "leaves pictures of other shapes"),
        ({"resample": 0}, "resample 1 .lanczos., 2 .bilinear. or 3 .bicubic."),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std should be above zero"),
        ({"image_std": [0.5, -0.5, 0.5]}, "image_std should be above zero"),
        ({"image_mean": [0.5, 0.5]}, "image_mean should be three finite numbers"),
    ],
)
def test_a_processor_that_does_not_fit_the_tower_or_us_is_refused_with_both_values(folder, changes, message):
    processor(folder, **changes)
    with pytest.raises(UserError, match=message):
        read(folder)


def test_a_processor_that_does_not_normalise_leaves_values_in_0_to_1(folder):
    processor(folder, do_normalize=False)
    pictures = read(folder).encoder.spec.preprocessing
    assert (pictures.mean, pictures.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("network", [clip, siglip])
def test_weights_without_their_configuration_are_refused_as_their_activation_is_not_known(tmp_path, network):
    folder = save_random(network(), tmp_path / "model")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"without config\.json, which alone says its activation"):
        read(folder)


def tokenizer(folder, end):
    added = [{"id": end - 1, "content": "<|startoftext|>"}, {"id": end, "content": "<|endoftext|>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"vocab": {}}}))
    marks = {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(marks))


@pytest.mark.slow
def test_the_end_of_text_is_the_tokenizers_where_the_vocabulary_grew_and_a_difference_is_refused(folder):
    vocabulary = read(folder).encoder.spec.text.vocab_size
    end = vocabulary - 3  # two tokens were added behind it
    edit(folder, lambda config: config["text_config"].update(eos_token_id=end))
    tokenizer(folder, end)
    spec = read(folder).encoder.spec
    assert (spec.text.eot_id, spec.tokenization.eos_id, spec.tokenization.bos_id) == (end, end, end - 1)
    edit(folder, lambda config: config["text_config"].update(eos_token_id=end + 1))
    with pytest.raises(UserError, match=f"eos_token_id {end + 1}, its tokenizer ends texts with {end}"):
        read(folder)
    edit(folder, lambda config: config["text_config"].update(eos_token_id=2))  # before transformers 4.31
    spec = read(folder).encoder.spec
    assert (spec.text.pooling, spec.tokenization.eos_id) == ("argmax", end)
    (folder / "tokenizer.json").unlink()
    edit(folder, lambda config: config["text_config"].update(eos_token_id=vocabulary + 5))
    with pytest.raises(UserError, match="outside the vocabulary"):
        read(folder)


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1e-5, True])
def test_a_norms_epsilon_is_a_positive_number(folder, value):
    edit(folder, lambda config: config["vision_config"].update(layer_norm_eps=value))
    with pytest.raises(UserError):
        read(folder)


@pytest.mark.slow
def test_what_was_trained_on_top_is_left_out_and_said(folder):
    whole = read(folder).encoder
    state = load_file(folder / "model.safetensors")
    save_file({**state, "classifier.weight": torch.zeros(5, 24)}, folder / "model.safetensors")
    found = read(folder)
    assert found.notes == ("left out what was trained on top of the encoder: classifier.weight",)
    side = whole.spec.image.image_size
    pictures = jnp.asarray(np.random.default_rng(0).normal(size=(1, side, side, 3)), jnp.float32)
    alone, before = (encode_image(jax.device_put(encoder), pictures) for encoder in (found.encoder, whole))
    np.testing.assert_array_equal(alone, before)


def test_a_siglip_tower_without_its_head_is_refused_as_that(tmp_path):
    folder = save_random(siglip(), tmp_path / "siglip")
    state = load_file(folder / "model.safetensors")
    without = {name: tensor for name, tensor in state.items() if not name.startswith("vision_model.head.")}
    save_file(without, folder / "model.safetensors")
    with pytest.raises(UserError, match="without its pooling head"):
        read(folder)


def test_weights_that_a_configuration_calls_quantised_are_refused(folder):
    edit(folder, lambda config: config.update(quantization_config={"quant_method": "compressed-tensors"}))
    with pytest.raises(UserError, match=r"weights are quantised .compressed-tensors."):
        read(folder)


def test_float8_is_named(folder):
    state = load_file(folder / "model.safetensors")
    eight = {name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    save_file(eight, folder / "model.safetensors")
    with pytest.raises(UserError, match="F8_E4M3"):
        read(folder)
