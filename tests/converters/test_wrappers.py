"""What trainers put around weights is taken off and said; two sets of weights are asked about; what no table can mend is named."""

from __future__ import annotations

import argparse
import itertools

import jax
import layouts
import numpy as np
import pytest
import torch
from randomized import CLIP_TEXT, SMALL_IMAGE, clip, save_random
from regcache_jax.converters.conversion import read_checkpoint

from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError

ROW = "open_clip:ViT-B-16,laion2b_s34b_b88k"
WIDE = {"hidden_size": 96, "num_attention_heads": 12}


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A small CLIP's tensors in open_clip's names."""
    network = clip({**CLIP_TEXT, **WIDE}, {**SMALL_IMAGE, **WIDE, "image_size": 224, "patch_size": 16})
    save_random(network, tmp_path_factory.mktemp("clip"))
    return layouts.open_clip_from_clip(network.state_dict(), 3, 2)


def trained(state, prefix=""):
    """As a trainer writes it: weights, an optimizer's moments, a counter."""
    moments = {number: {"exp_avg": torch.zeros_like(tensor)} for number, tensor in enumerate(state.values())}
    return {
        "epoch": 3,
        "state_dict": {prefix + name: tensor for name, tensor in state.items()},
        "optimizer": {"state": moments},
    }


def read(path, tree, **choices):
    torch.save(tree, path)
    return read_checkpoint(str(path), name=ROW, choices=Choices(**choices))


@pytest.fixture(scope="module")
def plain(state, tmp_path_factory):
    """The encoder of those tensors alone."""
    return read(tmp_path_factory.mktemp("plain") / "plain.pt", state)


def same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found.encoder.params, wanted.encoder.params)


PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.clip_model.")
EVERY = list(zip(PREFIXES, itertools.cycle((".pt", ".pth.tar", ".ckpt")), strict=False))


@pytest.mark.slow
@pytest.mark.parametrize(("prefix", "ending"), EVERY)
def test_wrappers_are_taken_off_in_any_order_and_the_optimizer_is_left_out(state, plain, tmp_path, prefix, ending):
    found = read(tmp_path / f"trained{ending}", trained(state, prefix))
    same(found, plain)
    assert plain.notes == () and "took the names below" in found.notes[0] and "(optimizer)" in found.notes[1]


def test_wrappers_inside_names_are_taken_off(state, plain, tmp_path):
    inside = {
        name.replace("transformer.", "transformer._fsdp_wrapped_module."): tensor for name, tensor in state.items()
    }
    same(read(tmp_path / "fsdp.pt", inside), plain)


@pytest.mark.slow
def test_of_raw_and_averaged_weights_the_user_chooses(state, plain, tmp_path):
    averaged = {name: tensor * 1.5 for name, tensor in state.items()}
    tree = {**trained(state), "state_dict_ema": averaged}
    with pytest.raises(
        UserError,
        match=r"2 sets of weights .state_dict_ema: an exponential moving average, EMA.*--weights state_dict_ema",
    ):
        read(tmp_path / "both.pt", tree)
    same(read(tmp_path / "both.pt", tree, weights="state_dict_ema"), read(tmp_path / "ema.pt", averaged))
    same(read(tmp_path / "both.pt", tree, weights="state_dict"), plain)
    with pytest.raises(UserError, match="no weights of an encoder below 'optimizer'"):
        read(tmp_path / "both.pt", tree, weights="optimizer")


def test_a_clip_that_was_trained_with_siglips_loss_keeps_its_offset(state, tmp_path):
    found = read(tmp_path / "bias.pt", {**state, "logit_bias": torch.tensor(-10.0)})
    assert float(found.encoder.params.logit_bias) == -10.0 and found.encoder.spec.logit_bias


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("visual.transformer.resblocks.0.attn.lora_A.default.weight", "adapters .LoRA"),
        ("visual.transformer.resblocks.0.mlp.c_fc.base_layer.weight", "adapters .LoRA"),
        ("_flat_param", "FSDP's flattened parameters"),
        ("visual.transformer.resblocks.0.mlp.c_fc.qweight", "GPTQ's or AWQ's"),
        ("visual.transformer.resblocks.0.mlp.c_fc.SCB", "bitsandbytes'"),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight_scale", "quantised already"),
    ],
)
def test_weights_that_are_not_plain_are_named_as_what_they_are(state, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "foreign.pt", {**state, name: torch.zeros(2, 2)})


def test_a_file_with_other_objects_says_how_to_keep_its_tensors_alone(state, tmp_path):
    with pytest.raises(UserError, match=r"argparse.Namespace.*torch.save\(torch.load"):
        read(tmp_path / "args.pt", {**trained(state), "args": argparse.Namespace(lr=1e-3)})


def dinov2(chunked=False):
    draw = torch.Generator().manual_seed(0)
    width, blocks = 64, 4

    def of(*shape):
        return torch.randn(*shape, generator=draw) * 0.05

    found = {
        "cls_token": of(1, 1, width), "pos_embed": of(1, 17, width), "mask_token": of(1, width),
        "patch_embed.proj.weight": of(width, 3, 14, 14), "patch_embed.proj.bias": of(width),
        "norm.weight": of(width), "norm.bias": of(width),
    }  # fmt: skip
    for block in range(blocks):
        at = f"blocks.{block // 2}.{block}" if chunked else f"blocks.{block}"
        for name, shape in (
            ("norm1", (width,)), ("norm2", (width,)), ("attn.qkv", (3 * width, width)), ("attn.proj", (width, width)),
            ("mlp.fc1", (4 * width, width)), ("mlp.fc2", (width, 4 * width)),
        ):  # fmt: skip
            found |= {f"{at}.{name}.weight": of(*shape), f"{at}.{name}.bias": of(shape[0])}
        found |= {f"{at}.ls1.gamma": of(width), f"{at}.ls2.gamma": of(width)}
    return found


def below(prefix, state):
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


@pytest.mark.slow
def test_of_dinov2s_trainer_the_teachers_backbone_is_taken_whatever_stands_beside_it(tmp_path):
    def find(name, tree):
        torch.save(tree, tmp_path / name)
        return read_checkpoint(str(tmp_path / name))

    heads = {"dino_head.mlp.0.weight": torch.zeros(8, 64)}
    student = {name: tensor + 1 for name, tensor in dinov2().items()}
    plain = find("plain.pth", dinov2())
    for name, tree in {
        "teacher.pth": {"teacher": {**below("backbone", dinov2()), **heads}},
        "chunked.pth": {"teacher": {**below("backbone", dinov2(chunked=True)), **heads}},
        "final.pth": {"model": {**below("student.backbone", student), **below("teacher.backbone", dinov2())}},
        "backbone.pth": below("backbone", dinov2()),
        "module.pth": below("module", dinov2()),
    }.items():
        found = find(name, tree)
        same(found, plain)
        assert found.notes
