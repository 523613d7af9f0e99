"""InternViT-300M by OpenGVLab's own names, against transformers' tower of InternVL, which is the same network under others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from randomized import SMALL_IMAGE, draw_parameters
from regcache_jax.converters.check import difference, run_ours
from regcache_jax.converters.conversion import read_checkpoint
from transformers.models.internvl.modeling_internvl import InternVLVisionConfig, InternVLVisionModel

from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
RENAMED = {
    "embeddings.cls_token": "embeddings.class_embedding", "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding", "encoder.layer.": "encoder.layers.",
    "layernorm_before": "norm1", "layernorm_after": "norm2", "lambda_1": "ls1", "lambda_2": "ls2",
    "attention.projection_layer": "attn.proj",
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    config = InternVLVisionConfig(**{**SMALL_IMAGE, "image_size": [40, 40], "patch_size": [8, 8]}, attention_bias=True)
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
        config = {**SMALL_IMAGE, "model_type": "intern_vit_6b", "architectures": ["InternVisionModel"], "qkv_bias": True,
                  "norm_type": "layer_norm", "qk_normalization": False, "hidden_act": "gelu", "layer_norm_eps": 1e-6}  # fmt: skip
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


@pytest.mark.parametrize(
    "changed",
    [{"norm_type": "rms_norm"}, {"qk_normalization": True}, {"norm_type": "rms_norm", "qk_normalization": True}],
)
def test_the_norms_of_the_6b_are_refused_in_one_line(folder, changed):
    with pytest.raises(UserError, match="only layer_norm without them is supported") as error:
        read_checkpoint(folder(**changed))
    assert "\n" not in str(error.value)
