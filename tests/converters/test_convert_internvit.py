"""InternViT, 300M and 6B, by OpenGVLab's own names and by transformers', against transformers' tower of InternVL."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from randomized import SMALL_IMAGE, draw_parameters
from regcache_jax.converters.check import check, difference, run_ours
from regcache_jax.converters.conversion import read_checkpoint
from transformers.models.internvl.modeling_internvl import InternVLVisionConfig, InternVLVisionModel

from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
RENAMED = {
    "embeddings.cls_token": "embeddings.class_embedding", "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding", "encoder.layer.": "encoder.layers.",
    "layernorm_before": "norm1", "layernorm_after": "norm2", "lambda_1": "ls1", "lambda_2": "ls2",
    "attention.projection_layer": "attn.proj", "attention.q_norm": "attn.q_norm", "attention.k_norm": "attn.k_norm",
}  # fmt: skip


SIX = {"norm_type": "rms_norm", "use_qk_norm": True}
"""What the 6B has beyond the 300M, which has biases of queries, keys and values instead."""


@pytest.fixture(scope="module", params=["300M", "6B"])
def network(request):
    options = SIX if request.param == "6B" else {"attention_bias": True}
    config = InternVLVisionConfig(**{**SMALL_IMAGE, "image_size": [40, 40], "patch_size": [8, 8]}, **options)
    return draw_parameters(InternVLVisionModel(config))  # which pools by the mean, and so has no final norm


@pytest.fixture
def folder(tmp_path, network):
    """The folder as OpenGVLab writes it, with some of its configuration changed."""

    def write(**changed):
        stored = {}
        for name, tensor in network.state_dict().items():
            for old, new in RENAMED.items():
                name = name.replace(old, new)
            stored[name] = tensor
        for name in [name for name in stored if ".q_proj." in name]:
            parts = [stored.pop(name.replace("q_proj", f"{each}_proj")) for each in "qkv"]
            stored[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
        safetensors.torch.save_file(
            {name: each.contiguous() for name, each in stored.items()}, tmp_path / "model.safetensors"
        )
        told = network.config
        config = {**SMALL_IMAGE, "model_type": "intern_vit_6b", "architectures": ["InternVisionModel"], "qkv_bias": told.attention_bias,
                  "qk_normalization": told.use_qk_norm, "hidden_act": "gelu", "layer_norm_eps": 1e-6}  # fmt: skip
        if not told.use_qk_norm:  # the configurations of the 6B do not name their norm
            config["norm_type"] = told.norm_type
        (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
        return str(tmp_path)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [40, 56])
def test_blocks_and_patches_are_those_of_transformers_at_two_sizes(network, folder, pixels):
    encoder = read_checkpoint(folder(), choices=Choices(image_size=pixels)).encoder
    images = np.random.default_rng(0).standard_normal((2, pixels, pixels, 3)).astype(np.float32)
    ours = run_ours(encoder, images, None)
    with torch.no_grad():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), output_hidden_states=True)
    wanted = {f"image block {block}": hidden for block, hidden in enumerate(theirs.hidden_states[:-1])}
    for what, values in (wanted | {"image features": theirs.last_hidden_state[:, 1:]}).items():
        row = difference(what, ours[what], values.numpy())
        assert row.typical <= TYPICAL and row.worst <= WORST, row


@pytest.mark.slow
def test_the_check_compares_with_transformers_under_either_names(network, folder, tmp_path):
    network.save_pretrained(tmp_path / "transformers")
    for source in (folder(), str(tmp_path / "transformers")):
        rows = check(source, read_checkpoint(source).encoder)
        assert len(rows) == 4 and all(row.typical <= TYPICAL and row.worst <= WORST for row in rows), rows


def test_transformers_own_names_give_the_same_arrays(network, folder, tmp_path):
    own = read_checkpoint(folder()).encoder
    network.save_pretrained(tmp_path / "transformers")
    found = read_checkpoint(str(tmp_path / "transformers")).encoder
    assert found.spec.image == own.spec.image
    jax.tree.map(np.testing.assert_array_equal, found.params, own.params)


@pytest.mark.parametrize("changed", ["norm_type", "qk_normalization"])
def test_a_configuration_that_says_other_norms_than_the_tensors_have_is_refused_in_one_line(network, folder, changed):
    six = network.config.use_qk_norm
    other = {"norm_type": "layer_norm" if six else "rms_norm", "qk_normalization": not six}
    with pytest.raises(UserError, match="the tensors are those of") as error:
        read_checkpoint(folder(**{changed: other[changed]}))
    assert "\n" not in str(error.value)
