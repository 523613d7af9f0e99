"""The tower of Qwen3-VL by its own names. Its patches come as two frames of a film, which are alike in a picture: their kernels are added
up. What merges patches for the language model, there and behind some blocks before, is that model's."""

from __future__ import annotations

import dataclasses

from regcache_jax.converters.engine import Arrangement, Rule, keep
from regcache_jax.converters.formats import Format, Given, section, setting
from regcache_jax.converters.huggingface_clip import block_spec
from regcache_jax.converters.meta_dinov2 import BLOCKS, MLP

from regcache_jax.core.spec import EncoderSpec, Rotary
from regcache_jax.encoders import normed_families

FRAMES = 2
# [D, 3, 2, P, P] <-> [P, P, 3, D]
frames_to_hwio = Arrangement(
    lambda ours: (ours[3], ours[2], FRAMES, ours[0], ours[1]),
    lambda array, ours: array.sum(axis=2).transpose(2, 3, 1, 0),
    lambda array: (array.transpose(3, 2, 0, 1)[:, :, None] / FRAMES).repeat(FRAMES, axis=2),
)
RULES = (
    Rule("patch_embed.proj.weight", "image/patch_embedding/kernel", frames_to_hwio),
    Rule("patch_embed.proj.bias", "image/patch_embedding/bias"),
    Rule("pos_embed.weight", "image/position_embedding", keep),
    *(
        dataclasses.replace(rule, theirs=rule.theirs.replace("mlp.", "mlp.linear_"))
        for rule in (*BLOCKS, *MLP)
        if rule.theirs.startswith("blocks.") and ".ls" not in rule.theirs
    ),
)


def spec(given: Given) -> EncoderSpec:
    """The spec of a tower: squares of as many patches as its table of positions has."""
    config, patch = given.config, setting(given.config, "patch_size", 16)
    pixels = given.side(given.shape("pos_embed.weight", 2)[0]) * patch
    default = normed_families.qwen_spec(given.name, "So400m", patch, pixels)
    rotary = Rotary(
        setting(section(config, "rope_parameters", "config.json"), "rope_theta", 10_000.0), coordinates="integer"
    )
    blocks = dataclasses.replace(block_spec(config, default.image.blocks, "gelu_pytorch_tanh"), rotary=rotary)
    return dataclasses.replace(default, image=dataclasses.replace(default.image, blocks=blocks))


FORMAT = Format(
    name="Qwen3-VL tower",
    marks=("patch_embed.proj.weight", "pos_embed.weight", "blocks.*.mlp.linear_fc1.weight"),
    rules=RULES,
    spec=spec,
    model_types=("qwen3_vl", "qwen3_vl_vision"),
)
