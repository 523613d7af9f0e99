"""AIMv2 by Apple: its own names (on the hub), transformers', timm's; the image tower, and both towers of the one tuned with texts (LiT).

RMSNorm, SwiGLU, no biases but the patch embedding's and the pooling's, a norm between patches and positions. What no file says (epsilon,
SiLU, heads of 128) all published models share. Without texts its patches are read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from regcache_jax.converters.engine import (
    Rule,
    flat,
    keep,
    oihw_to_hwio,
    one_in_front,
    out_heads_to_heads_out,
    out_in_to_in_out,
    two_in_front,
)
from regcache_jax.converters.formats import Format, Given, preprocessing, setting
from regcache_jax.converters.huggingface_clip import block_spec, sub_config

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import BlockSpec, EncoderSpec, TextSpec
from regcache_jax.encoders import families, normed_families

_QKV = ("query", "key", "value")


class Names(NamedTuple):
    """What one layout calls the parts of the image tower (and, below `text`, those of the text tower, whose blocks are called alike)."""

    patches: str
    patch_norm: str
    positions: str
    blocks: str
    norms: tuple[str, str]
    attention: tuple[str, ...]
    mlp: tuple[str, str, str]
    final_norm: str
    text: str = ""
    words: tuple[str, str] = ("", "")
    head: str = ""
    head_layers: tuple[str, str, str] = ("", "", "")
    others: tuple[str, str, str] = ("", "", "")

    def in_text(self, name: str) -> str:
        """A part of the image tower's name as it is in the text tower."""
        return self.text + name.partition(".")[2]

    def block_rules(self, block: str, ours: str) -> tuple[Rule, ...]:
        """The layers of a stack."""
        gate, up, down = self.mlp
        *inputs, out = self.attention
        kernels = tuple(f"{ours}/attention/{name}/kernel" for name in _QKV)
        together = len(inputs) == 1
        projections = [(inputs[0], kernels)] if together else zip(inputs, kernels, strict=True)
        return (
            *(
                Rule(f"{block}.{norm}.weight", f"{ours}/norm{number}/scale")
                for number, norm in enumerate(self.norms, start=1)
            ),
            *(Rule(f"{block}.{layer}.weight", path, out_in_to_in_out) for layer, path in projections),
            Rule(f"{block}.{out}.weight", f"{ours}/attention/out/kernel", out_heads_to_heads_out),
            Rule(f"{block}.{gate}.weight", f"{ours}/mlp/gate/kernel", out_in_to_in_out),
            Rule(f"{block}.{up}.weight", f"{ours}/mlp/fc1/kernel", out_in_to_in_out),
            Rule(f"{block}.{down}.weight", f"{ours}/mlp/fc2/kernel", out_in_to_in_out),
        )

    def rules(self) -> tuple[Rule, ...]:
        """The table of the layout."""
        image = (
            Rule(f"{self.patches}.weight", "image/patch_embedding/kernel", oihw_to_hwio),
            Rule(f"{self.patches}.bias", "image/patch_embedding/bias"),
            Rule(f"{self.patch_norm}.weight", "image/patch_norm/scale"),
            Rule(
                self.positions, "image/position_embedding", keep if self.positions.endswith(".weight") else one_in_front
            ),
            *self.block_rules(self.blocks, "image/blocks"),
            Rule(f"{self.final_norm}.weight", "image/final_norm/scale"),
        )
        if not self.text:
            return image
        key, value, out = (f"{self.head}.{layer}" for layer in self.head_layers)
        visual, textual, scale = self.others
        return (
            *image,
            Rule(f"{self.head}.cls_token", "image/probe/query", two_in_front),
            Rule(f"{key}.weight", "image/probe/key/kernel", out_in_to_in_out),
            Rule(f"{value}.weight", "image/probe/value/kernel", out_in_to_in_out),
            Rule(f"{out}.weight", "image/probe/out/kernel", out_heads_to_heads_out),
            Rule(f"{out}.bias", "image/probe/out/bias"),
            Rule(f"{visual}.weight", "image/projection/kernel", out_in_to_in_out),
            Rule(f"{self.text}{self.words[0]}", "text/token_embedding"),
            Rule(f"{self.text}{self.words[1]}", "text/position_embedding"),
            *self.block_rules(self.in_text(self.blocks), "text/blocks"),
            Rule(f"{self.in_text(self.final_norm)}.weight", "text/final_norm/scale"),
            Rule(f"{textual}.weight", "text/projection/kernel", out_in_to_in_out),
            Rule(scale, "logit_scale", flat),
        )


APPLE = Names(
    "image_encoder.preprocessor.patchifier.proj", "image_encoder.preprocessor.patchifier.norm", "image_encoder.preprocessor.pos_embed",
    "image_encoder.trunk.blocks.*", ("norm_1", "norm_2"), ("attn.qkv", "attn.proj"), ("mlp.fc1", "mlp.fc3", "mlp.fc2"),
    "image_encoder.trunk.post_trunk_norm", "text_encoder.",
    ("preprocessor.text_embedding.weight", "preprocessor.positional_embedding"), "image_encoder.head", ("k", "v", "linear"),
    ("image_projector", "text_projector", "log_logit_scale"),
)  # fmt: skip
HUGGING_FACE = Names(
    "vision_model.embeddings.patch_embed", "vision_model.embeddings.rms_norm", "vision_model.embeddings.position_embedding.weight",
    "vision_model.encoder.layers.*", ("rms_norm1", "rms_norm2"), tuple(f"attention.{name}_proj" for name in ("q", "k", "v", "out")),
    ("ffn.gate_proj", "ffn.up_proj", "ffn.down_proj"), "vision_model.rms_norm", "text_model.",
    ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight"), "vision_model.head",
    ("k_proj", "v_proj", "output_proj"), ("visual_projection", "text_projection", "logit_scale"),
)  # fmt: skip
TIMM = Names(
    "patch_embed.proj", "patch_embed.norm", "pos_embed", "blocks.*", ("norm1", "norm2"), ("attn.qkv", "attn.proj"),
    ("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"), "norm",
)  # fmt: skip


def spec(given: Given, names: Names) -> EncoderSpec:
    """The spec of an AIMv2: sizes from its tensors, held to config.json where there is one. Raises UserError for the one of pictures of
    any size, whose positions no file holds."""
    width, _, patch, _ = given.shape(f"{names.patches}.weight", 4)
    if not given.has(names.positions):
        raise UserError(
            f"{given.name} has no table of positions: the AIMv2 of pictures of any size (native), which is not supported"
        )
    vision = sub_config(given.config, "vision_config") if given.config.get("model_type") else {}
    grid = given.side(given.tensors[names.positions].shape[-2])
    image = normed_families.aimv2_image(_blocks(given, names, names.blocks, vision, width), patch, grid * patch)
    pictures = preprocessing(given.preprocessor, families.clip_preprocessing(image.image_size))
    if not names.text or not given.has(f"{names.text}*"):
        return normed_families.aimv2_spec(given.name, image, pictures)
    told = sub_config(given.config, "text_config")
    words, width = given.shape(f"{names.text}{names.words[0]}", 2)
    context = given.tensors[f"{names.text}{names.words[1]}"].shape[-2]
    blocks = dataclasses.replace(_blocks(given, names, names.in_text(names.blocks), told, width), causal=True)
    out = given.shape(f"{names.others[0]}.weight", 2)[0]
    text = TextSpec(words, context, blocks, "eot", eot_id=setting(told, "eos_token_id", 49407), projection=out)
    return normed_families.aimv2_spec(given.name, image, pictures, text)


def _blocks(given: Given, names: Names, block: str, config: Mapping[str, Any], width: int) -> BlockSpec:
    """The blocks of a tower."""
    for name in ("qkv_bias", "use_bias", "mlp_bias"):
        if setting(config, name, False):
            raise UserError(f"config.json: {name} is true, which no published AIMv2 has and which is not supported")
    count, mlp = (
        given.count(f"{block}.{names.norms[0]}.weight"),
        given.shape(f"{block}.{names.mlp[0]}.weight".replace("*", "0"), 2)[0],
    )
    default = normed_families.aimv2_blocks((width, count, max(1, width // normed_families.AIMV2_HEAD), mlp))
    return dataclasses.replace(
        block_spec(config, default, "silu"), norm_eps=setting(config, "rms_norm_eps", default.norm_eps)
    )


FORMATS = (
    Format(
        name="AIMv2",
        marks=("image_encoder.preprocessor.patchifier.norm.weight", "image_encoder.trunk.blocks.*.norm_1.weight"),
        rules=APPLE.rules(),
        spec=functools.partial(spec, names=APPLE),
        model_types=("aimv2",),
        classes=r"A[Ii][Mm]v2",
        prefixes=(("preprocessor.", "image_encoder.preprocessor."), ("trunk.", "image_encoder.trunk.")),
    ),
    Format(
        name="Hugging Face AIMv2",
        marks=("vision_model.embeddings.rms_norm.weight", "vision_model.encoder.layers.*.ffn.gate_proj.weight"),
        rules=HUGGING_FACE.rules(),
        spec=functools.partial(spec, names=HUGGING_FACE),
        model_types=("aimv2", "aimv2_vision_model"),
        classes=r"A[Ii][Mm]v2",
        prefixes=tuple((f"{part}.", f"vision_model.{part}.") for part in ("embeddings", "encoder", "rms_norm", "head")),
    ),
    Format(
        name="timm AIMv2",
        marks=("patch_embed.norm.weight", "blocks.*.mlp.fc1_g.weight", "pos_embed"),
        rules=TIMM.rules(),
        spec=functools.partial(spec, names=TIMM),
        unless=("cls_token", "patch_embed.norm.bias"),
    ),
)
