"""TIPS from its two JAX files against transformers' TIPSv2, which is the same network with another GELU and epsilon by default."""

from __future__ import annotations

import functools

import jax
import layouts
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from randomized import draw_parameters, save_random
from regcache_jax.converters.check import difference, run_ours
from regcache_jax.converters.conversion import read_checkpoint

from regcache_jax import converters
from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError
from regcache_jax.encoders.text import sinusoids
from regcache_jax.models import folder as checkpoints

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
BLOCKS, HEADS = 2, 4
COMMON = {"hidden_size": 64, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "layer_norm_eps": 1e-6}


@functools.cache
def network(gated):
    """All parameters drawn but those that the JAX files do not have: LayerScale is one, the class token has no position."""
    vision = {**COMMON, "image_size": 56, "mlp_ratio": 3, "hidden_act": "gelu_pytorch_tanh", "use_swiglu_ffn": gated}
    text = {**COMMON, "intermediate_size": 96, "vocab_size": 50, "max_position_embeddings": 64}
    drawn = draw_parameters(transformers.Tipsv2Model(transformers.Tipsv2Config(vision_config=vision, text_config=text)))
    with torch.no_grad():
        for name, parameter in drawn.named_parameters():
            if name.endswith("lambda1"):
                parameter.fill_(1.0)
        drawn.vision_model.embeddings.position_embeddings[:, 0] = 0.0
        drawn.temperature.fill_(0.05)
    return drawn


@pytest.fixture
def files(tmp_path):
    """Writes the two files, by what MLP the pictures' blocks have."""

    def write(gated=False, texts=True):
        pictures, words = layouts.tips_from_transformers(network(gated).state_dict(), BLOCKS, HEADS, gated)
        np.savez(tmp_path / "small_vision.npz", **pictures)
        if texts:
            np.savez(tmp_path / "small_text.npz", **words)
        return str(tmp_path / "small_vision.npz")

    return write


@pytest.mark.slow
@pytest.mark.parametrize(("gated", "pixels"), [(False, 56), (True, 84), (False, 42)])
def test_features_texts_and_logits_are_those_of_transformers_at_smaller_and_larger_pictures(files, gated, pixels):
    encoder = read_checkpoint(files(gated), choices=Choices(image_size=pixels)).encoder
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (2, pixels, pixels, 3)).astype(np.float32)
    ids = rng.integers(1, 50, (4, 64)).astype(np.int32)
    ids[0, 5:] = ids[1, 1:] = ids[2, 63:] = 0  # few words, one, all but one, all
    ours = run_ours(encoder, images, ids)
    with torch.no_grad():
        pixel_values, words = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(ids).long()
        theirs = network(gated)
        tokens = theirs.vision_model(pixel_values, output_hidden_states=True)
        pooled = theirs.text_model(words, attention_mask=(words != 0).long()).pooler_output
        logits = theirs(input_ids=words, pixel_values=pixel_values, attention_mask=(words != 0).long()).logits_per_image
    wanted = {f"image block {block}": hidden for block, hidden in enumerate(tokens.hidden_states[:-1])}
    wanted |= {"image features": tokens.last_hidden_state[:, 0], "text features": pooled, "logits": logits}
    for what, values in wanted.items():
        row = difference(what, ours[what], values.numpy())
        assert row.typical <= TYPICAL and row.worst <= WORST, row


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
def test_a_folder_of_transformers_converts_with_its_check_and_needs_no_temperature(tmp_path, regcache, gated):
    vision = {**COMMON, "image_size": 56, "mlp_ratio": 3, "use_swiglu_ffn": gated}
    text = {**COMMON, "layer_norm_eps": 1e-5, "intermediate_size": 96, "vocab_size": 50, "max_position_embeddings": 64}
    config = transformers.Tipsv2Config(vision_config=vision, text_config=text)
    source = save_random(transformers.Tipsv2Model(config), tmp_path / "source")
    stored = safetensors.torch.load_file(source / "model.safetensors")
    del stored["temperature"]  # as in published files
    safetensors.torch.save_file(stored, source / "model.safetensors", {"format": "pt"})
    status, out, error = regcache("convert", source, "--out", tmp_path / "model", "--check")
    assert status == 0 and "logits" in out, error
    model = checkpoints.load(tmp_path / "model")
    rows = converters.check(str(source), model)
    assert all(row.typical <= TYPICAL and row.worst <= WORST for row in rows), rows
    spec = model.encoder.spec
    assert (spec.family, spec.text.blocks.activation, spec.text.blocks.norm_eps) == ("tips", "relu", 1e-5)
    assert spec.image.blocks.activation == ("silu" if gated else "gelu")


def test_a_text_without_words_is_a_feature_of_zeros(files):
    encoder = read_checkpoint(files()).encoder
    features = run_ours(encoder, np.zeros((1, 56, 56, 3), np.float32), np.zeros((1, 64), np.int32))["text features"]
    np.testing.assert_array_equal(features, 0.0)


def test_positions_of_words_are_sines_and_cosines_of_periods_up_to_ten_thousand():
    table = np.asarray(sinusoids(3, 4))
    np.testing.assert_allclose(table[2], [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)], rtol=1e-6)
    np.testing.assert_array_equal(table[0], [0, 0, 1, 1])


@pytest.mark.slow
def test_the_text_tower_comes_from_the_file_beside_and_may_be_missing(tmp_path, files):
    alone = read_checkpoint(files(texts=False)).encoder
    both = checkpoints.load(converters.convert(files(), tmp_path / "model"))
    assert alone.spec.text is None and sorted(both.metadata["files"]) == ["small_text.npz", "small_vision.npz"]
    jax.tree.map(np.testing.assert_array_equal, both.encoder.params.image, alone.params.image)
    pictures, words = both.encoder.spec.preprocessing, both.encoder.spec.tokenization
    assert (pictures.resize, pictures.std, words.kind, words.eos_id) == (
        "squash",
        (1.0, 1.0, 1.0),
        "sentencepiece",
        None,
    )
    written = converters.export(both, "TIPS")
    stored = {**np.load(tmp_path / "small_vision.npz"), **np.load(tmp_path / "small_text.npz")}
    assert set(written) == set(stored)
    for name, array in stored.items():
        np.testing.assert_allclose(written[name], array, rtol=1e-6, err_msg=name)


def test_a_tips_of_version_1_asks_for_its_row_which_knows_the_size_of_pictures(tmp_path, files):
    arrays = dict(np.load(files(texts=False)))
    arrays["encoder/ToTokenSequence_0/posembed_input"] = np.zeros((1, 16, 16, 64), np.float32)
    np.savez(tmp_path / "old_vision.npz", **arrays)
    with pytest.raises(UserError, match="whether it takes pictures of 224 or 448 px; name its row"):
        read_checkpoint(str(tmp_path / "old_vision.npz"))
    named = read_checkpoint(str(tmp_path / "old_vision.npz"), name="tips_oss_s14_highres_distilled").encoder.spec
    assert (named.image.image_size, named.image.stored_grid) == (448, 16)
