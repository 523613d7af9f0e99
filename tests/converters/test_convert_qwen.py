"""The tower of Qwen3-VL in its whole checkpoint, against transformers' tower: squares of patches put in rows, two frames made one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from randomized import draw_parameters
from regcache_jax.converters.check import check, difference, run_ours
from regcache_jax.converters.conversion import read_checkpoint
from regcache_jax.converters.reference_towers import run_qwen
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionConfig, Qwen3VLVisionModel

from regcache_jax.core.conversion import Choices

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
SMALL = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 8}
SMALL |= {"num_position_embeddings": 16, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}


@pytest.fixture(scope="module")
def network():
    return draw_parameters(Qwen3VLVisionModel(Qwen3VLVisionConfig(**SMALL)))


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """The whole checkpoint as far as it is read: the tower and its mergers, and a tensor of the language model."""
    folder = tmp_path_factory.mktemp("qwen")
    tensors = {f"model.visual.{name}": each.contiguous() for name, each in network.state_dict().items()}
    tensors["model.language_model.norm.weight"] = torch.ones(32)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "qwen3_vl",
        "vision_config": {**SMALL, "model_type": "qwen3_vl", "hidden_act": "gelu_pytorch_tanh"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [32, 48])
def test_blocks_and_patches_are_those_of_transformers_at_two_sizes(network, folder, pixels):
    encoder = read_checkpoint(folder, choices=Choices(image_size=pixels)).encoder
    images = np.random.default_rng(0).standard_normal((2, pixels, pixels, 3)).astype(np.float32)
    ours, theirs = run_ours(encoder, images, None), run_qwen(network, images)
    assert set(theirs) == {"image block 0", "image block 1", "image features"}
    for what, values in theirs.items():
        row = difference(what, ours[what], values)
        assert row.typical <= TYPICAL and row.worst <= WORST, row


@pytest.mark.slow
def test_the_check_builds_the_tower_alone(folder):
    assert all(row.worst <= WORST for row in check(folder, read_checkpoint(folder).encoder))
