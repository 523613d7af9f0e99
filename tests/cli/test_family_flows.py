"""The whole way of a small random encoder of each newer family, by the commands that a user types; a TPU's cost is asked of one block."""

from __future__ import annotations

import json

import dino_txt
import eva
import jax
import jax.numpy as jnp
import layouts
import numpy as np
import perception
import pytest
import radio
import safetensors.torch
import small
import torch
import transformers
from commands import DATA, KNN
from randomized import CLIP_TEXT, SMALL_IMAGE, clip, draw_parameters, save_random
from transformers.models.internvl.modeling_internvl import InternVLVisionConfig, InternVLVisionModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionConfig, Qwen3VLVisionModel

import regcache_jax as rc
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.encoders.taps import encode_patches
from regcache_jax.models.export import load
from regcache_jax.tpu.ask import shallow
from regcache_jax.tpu.programs import PROGRAMS


def perception_encoder(folder, **options):
    torch.save(perception.drawn(**options), folder / "PE.pt")
    return (folder / "PE.pt",)


def metaclip2(folder):
    config = transformers.MetaClip2Config(
        vision_config=SMALL_IMAGE, text_config={**CLIP_TEXT, "eos_token_id": 2}, projection_dim=24
    )
    return save_random(transformers.MetaClip2Model(config), folder / "source"), "--check"


def tips(folder):
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision, text = {**small, "image_size": 42}, {**small, "intermediate_size": 96, "vocab_size": 120}
    network = draw_parameters(
        transformers.Tipsv2Model(transformers.Tipsv2Config(vision_config=vision, text_config=text))
    )
    for name, arrays in zip(
        ("vision", "text"), layouts.tips_from_transformers(network.state_dict(), 2, 4, gated=False), strict=True
    ):
        np.savez(folder / f"small_{name}.npz", **arrays)
    return (folder / "small_vision.npz",)


def tower(folder):
    vision = {**SMALL_IMAGE, "num_hidden_layers": 2, "vision_use_head": False, "model_type": "siglip_vision_model"}
    text = {
        "model_type": "gemma",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text |= {"num_key_value_heads": 1, "vocab_size": 100, "head_dim": 16, "pad_token_id": 0}
    config = transformers.PaliGemmaConfig(vision_config=vision, text_config=text, image_token_id=99)
    return (save_random(transformers.PaliGemmaForConditionalGeneration(config), folder / "source"),)


def aimv2(folder):
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 120, "max_position_embeddings": 11, "eos_token_id": 119}
    config = transformers.Aimv2Config(
        vision_config={**small, "image_size": 40, "patch_size": 8}, text_config=text, projection_dim=24
    )
    return save_random(transformers.Aimv2Model(config), folder / "source"), "--check"


def internvit_6b(folder):
    config = InternVLVisionConfig(
        **{**SMALL_IMAGE, "image_size": [40, 40], "patch_size": [8, 8]}, norm_type="rms_norm", use_qk_norm=True
    )
    return (save_random(InternVLVisionModel(config), folder / "source"),)


def dinotxt(folder):
    small = {"hidden_size": 128, "intermediate_size": 144, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.DINOv3ViTConfig(**small, patch_size=8, num_register_tokens=3, key_bias=False)
    trunk = draw_parameters(transformers.DINOv3ViTModel(config))
    torch.save(layouts.meta_from_dinov3(trunk.state_dict(), 2), folder / "dinov3_vitl16_pretrain_small.pth")
    torch.save(dino_txt.drawn(), folder / "dinov3_vitl16_dinotxt_small.pth")
    return folder / "dinov3_vitl16_dinotxt_small.pth", "--image-size", "40"


def eva02(folder):
    safetensors.torch.save_file(eva.drawn(texts=True), folder / "eva.safetensors")
    return (folder / "eva.safetensors",)


def clipa(folder):
    state = layouts.open_clip_from_clip(draw_parameters(clip()).state_dict(), 3, 2)
    kept = {name: tensor for name, tensor in state.items() if ".ln_pre." not in name}
    safetensors.torch.save_file(kept, folder / "open_clip_model.safetensors")
    vision = {"head_width": 12, "pool_type": "avg", "final_ln_after_pool": True}
    told = {"vision_cfg": vision, "text_cfg": {"pool_type": "last", "no_causal_mask": True, "heads": 2}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": told}))
    return (folder,)


def in_its_checkpoint(network, folder, below, told):
    """A tower's tensors as they stand in the whole checkpoint, whose configuration says what it is."""
    tensors = {f"{below}{name}": each.contiguous() for name, each in draw_parameters(network).state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(told))
    return folder, "--check"


def internvl(folder):
    vision = {**SMALL_IMAGE, "image_size": [40, 40], "patch_size": [8, 8], "attention_bias": True}
    told = {"model_type": "internvl", "vision_config": {**vision, "model_type": "internvl_vision"}}
    return in_its_checkpoint(InternVLVisionModel(InternVLVisionConfig(**vision)), folder, "model.vision_tower.", told)


def qwen3_vl(folder):
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 8}
    vision |= {"num_position_embeddings": 36, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}
    told = {"model_type": "qwen3_vl", "vision_config": {**vision, "hidden_act": "gelu_pytorch_tanh"}}
    return in_its_checkpoint(Qwen3VLVisionModel(Qwen3VLVisionConfig(**vision)), folder, "model.visual.", told)


FAMILIES = {
    "PE Core": lambda folder: perception_encoder(folder, class_token=True, core=True, layer_scale=False),
    "PE Lang": lambda folder: perception_encoder(folder, class_token=False, core=False, layer_scale=True),
    "MetaCLIP 2": metaclip2,
    "TIPS": tips,
    "PaliGemma's tower": tower,
    "AIMv2": aimv2,
    "InternViT-6B": internvit_6b,
    "dino.txt": dinotxt,
    "EVA-02": eva02,
    "CLIPA": clipa,
    "C-RADIO": lambda folder: (radio.folder(folder, radio.drawn()), "--image-size", "40"),
    "InternVL's tower": internvl,
    "Qwen3-VL's tower": qwen3_vl,
}
PATCHES = ("PE Lang", "PaliGemma's tower", "InternViT-6B", "InternVL's tower", "Qwen3-VL's tower")
"""What is read of these are their patches."""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_all_the_way_from_its_file_to_a_figure_of_an_int8_encoder(tmp_path, regcache, family):
    model, plan, int8 = tmp_path / "model", tmp_path / "plan.safetensors", tmp_path / "int8"
    objective = ("--objective", "patches") if family in PATCHES else ()
    steps = (
        ("convert", *FAMILIES[family](tmp_path), "--out", model),
        ("inspect", model, *DATA, *objective),
        ("search", model, *DATA, *objective, "--max-trials", "2", "--out", plan),
        ("quantize", model, *DATA, "--registers", plan, "--out", int8),
        ("evaluate", int8, "--dataset", "emoji", *KNN),
        ("export", int8, "--out", tmp_path / "int8.stablehlo", "--platforms", "cpu"),
    )
    for step in steps:
        status, out, error = regcache(*step)
        assert status == 0, (step[0], error)
        assert step[0] != "evaluate" or "acc1" in out
    exact, rounded = (rc.load(folder).encoder for folder in (model, int8))
    side = exact.spec.image.image_size
    pixels = np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)
    exported = jax.jit(load(tmp_path / "int8.stablehlo"))(pixels)
    served = encode_patches if family in PATCHES else encode_image
    np.testing.assert_allclose(exported, served(rounded, pixels), rtol=2e-2, atol=2e-2)  # an integer's step
    exact, rounded = (encode_image(encoder, pixels) for encoder in (exact, rounded))
    cosine = jnp.sum(exact * rounded, -1) / jnp.linalg.norm(exact, axis=-1) / jnp.linalg.norm(rounded, axis=-1)
    assert float(cosine.min()) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dinov3", "naflex"])
def test_the_tpu_compiler_is_asked_of_rotary_positions_and_of_pictures_of_any_shape(tmp_path, regcache, kind):
    encoder = small.encoder(kind)
    one = jax.tree.map(lambda leaf: leaf[:1], encoder.params.image.blocks)
    params = encoder.params.replace(image=encoder.params.image.replace(blocks=one))
    rc.save(tmp_path / "model", encoder.replace(params=params, spec=shallow(encoder.spec, 1)))
    status, out, error = regcache("tpu", tmp_path / "model", "--batches", "1")
    assert status == 0, error
    assert len([line for line in out.splitlines() if line.count("\t") == 6]) == 1 + len(PROGRAMS)
