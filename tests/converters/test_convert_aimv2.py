"""AIMv2 by Apple's, transformers' and timm's names, against transformers: block by block, features, and scores of the one with texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from randomized import draw_parameters, save_random
from regcache_jax.converters.check import check
from regcache_jax.converters.conversion import read_checkpoint
from regcache_jax.converters.reference import find_reference

from regcache_jax.core.errors import UserError
from regcache_jax.core.names import to_names

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
SMALL = {"hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = {**SMALL, "image_size": 24, "patch_size": 8}
TEXT = {
    **SMALL,
    "hidden_size": 128,
    "num_attention_heads": 1,
    "vocab_size": 120,
    "max_position_embeddings": 11,
    "eos_token_id": 119,
}


def network(texts: bool = False, **options) -> torch.nn.Module:
    """A small one of transformers."""
    if not texts:
        return transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**IMAGE, use_head=False, **options))
    return transformers.Aimv2Model(transformers.Aimv2Config(vision_config=IMAGE, text_config=TEXT, projection_dim=24))


def apples(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as Apple's files hold them: queries, keys and values in one."""
    parts = (
        ("vision_model.", "image_encoder."), ("text_model.", "text_encoder."), ("embeddings.patch_embed", "preprocessor.patchifier.proj"),
        ("embeddings.rms_norm", "preprocessor.patchifier.norm"), ("embeddings.token_embedding", "preprocessor.text_embedding"),
        ("encoder.layers.", "trunk.blocks."), ("rms_norm1", "norm_1"), ("rms_norm2", "norm_2"), ("ffn.gate_proj", "mlp.fc1"),
        ("ffn.up_proj", "mlp.fc3"), ("ffn.down_proj", "mlp.fc2"), ("attention.out_proj", "attn.proj"),
        ("rms_norm.weight", "trunk.post_trunk_norm.weight"),
        ("head.k_proj", "head.k"), ("head.v_proj", "head.v"), ("head.output_proj", "head.linear"), ("visual_projection", "image_projector"),
        ("text_projection", "text_projector"), ("logit_scale", "log_logit_scale"),
    )  # fmt: skip
    held: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if "attention.q_proj" in name:
            whole = torch.cat([state[name.replace("q_proj", f"{each}_proj")] for each in "qkv"])
            name, tensor = name.replace("attention.q_proj", "attn.qkv"), whole
        elif "attention.k_proj" in name or "attention.v_proj" in name:
            continue
        if name.endswith("position_embedding.weight"):
            text = "text_model" in name
            name = (
                "text_model.preprocessor.positional_embedding"
                if text
                else name.replace("embeddings.position_embedding.weight", "preprocessor.pos_embed")
            )
            tensor = tensor if text else tensor[None]
        for theirs, apple in parts:
            name = name.replace(theirs, apple)
        held[name] = tensor.contiguous()
    return held


def timms(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same as timm's."""
    parts = (("preprocessor.patchifier.", "patch_embed."), ("preprocessor.", ""), ("trunk.post_trunk_norm", "norm"), ("trunk.", ""),
             ("norm_", "norm"), ("mlp.fc1", "mlp.fc1_g"), ("mlp.fc3", "mlp.fc1_x"))  # fmt: skip
    held = {}
    for name, tensor in apples(state).items():
        for apple, timm in parts:
            name = name.replace(apple, timm)
        held[name] = tensor
    return held


@pytest.mark.slow
@pytest.mark.parametrize("texts", [False, True])
def test_blocks_features_and_scores_are_those_of_transformers(tmp_path, texts):
    source = str(save_random(network(texts), tmp_path / "source"))
    rows = check(source, read_checkpoint(source).encoder)
    assert {"image block 1", "image features"} <= {row.what for row in rows}
    assert texts == ({"text block 1", "text features", "logits"} <= {row.what for row in rows})
    for row in rows:
        assert row.typical <= TYPICAL and row.worst <= WORST, row


@pytest.mark.parametrize(("layout", "texts"), [(apples, False), (apples, True), (timms, False)])
def test_another_layout_gives_the_same_arrays(tmp_path, layout, texts):
    source = save_random(network(texts), tmp_path / "source")
    wanted = read_checkpoint(str(source)).encoder
    other = tmp_path / "other"
    other.mkdir()
    safetensors.torch.save_file(layout(draw_parameters(network(texts)).state_dict()), other / "model.safetensors")
    if layout is apples:
        config = json.loads((source / "config.json").read_text())
        flat = config if texts else {**IMAGE, "model_type": "aimv2", "architectures": ["AIMv2Model"], "use_bias": False}
        (other / "config.json").write_text(json.dumps(flat))
        with pytest.raises(UserError, match="does not read Apple's own names"):
            find_reference(str(other))
    found = read_checkpoint(str(other)).encoder
    assert (found.spec.image, found.spec.text) == (wanted.spec.image, wanted.spec.text)
    names = to_names(wanted.params)
    assert to_names(found.params).keys() == names.keys()
    for name, array in to_names(found.params).items():
        np.testing.assert_array_equal(array, names[name])


def test_what_no_published_one_has_is_refused_in_one_line(tmp_path):
    save_random(network(is_native=True), tmp_path / "native")
    with pytest.raises(UserError, match="native\\), which is not supported"):
        read_checkpoint(str(tmp_path / "native"))
    save_random(network(mlp_bias=True), tmp_path / "biased")
    with pytest.raises(UserError, match="mlp_bias is true"):
        read_checkpoint(str(tmp_path / "biased"))
