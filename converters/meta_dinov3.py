"""Meta's DINOv3 files (`dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth` and the like), as torch hub loads them, and timm's.

What no file says (base, epsilon, exact GELU) all published models share. Meta's files hold the rotary periods, rounded to bfloat16;
ours are computed in float32, as those of transformers and timm are, and only held against the file's.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from regcache_jax.converters.engine import (
    Rule,
    StoredTensor,
    flat,
    one_in_front,
    out_in_to_in_out,
    two_in_front,
)
from regcache_jax.converters.formats import Format, Given
from regcache_jax.converters.meta_dinov2 import BLOCKS, MLP

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec
from regcache_jax.encoders import families

_OURS = "image/blocks"
_GATE = f"{_OURS}/mlp/gate/kernel"
_SHARED = tuple(rule for rule in BLOCKS if ".ls" not in rule.theirs and rule.theirs != "blocks.*.attn.qkv.bias")
META_RULES = (
    Rule("cls_token", "image/class_token", two_in_front),
    Rule("storage_tokens", "image/registers", one_in_front),
    *_SHARED,
    Rule("blocks.*.attn.qkv.bias", (f"{_OURS}/attention/query/bias", None, f"{_OURS}/attention/value/bias"), flat),
    Rule("blocks.*.ls1.gamma", f"{_OURS}/layer_scale1"),
    Rule("blocks.*.ls2.gamma", f"{_OURS}/layer_scale2"),
    # SwiGLU: w3(silu(w1 x) * w2 x)
    Rule("blocks.*.mlp.w1.weight", f"{_OURS}/mlp/gate/kernel", out_in_to_in_out),
    Rule("blocks.*.mlp.w1.bias", f"{_OURS}/mlp/gate/bias"),
    Rule("blocks.*.mlp.w2.weight", f"{_OURS}/mlp/fc1/kernel", out_in_to_in_out, beside=_GATE),
    Rule("blocks.*.mlp.w2.bias", f"{_OURS}/mlp/fc1/bias", beside=_GATE),
    Rule("blocks.*.mlp.w3.weight", f"{_OURS}/mlp/fc2/kernel", out_in_to_in_out, beside=_GATE),
    Rule("blocks.*.mlp.w3.bias", f"{_OURS}/mlp/fc2/bias", beside=_GATE),
    *MLP,
)
TIMM_LAYER_SCALE = (
    Rule("blocks.*.gamma_1", f"{_OURS}/layer_scale1"),
    Rule("blocks.*.gamma_2", f"{_OURS}/layer_scale2"),
)
TIMM_RULES = (
    Rule("cls_token", "image/class_token", two_in_front),
    Rule("reg_token", "image/registers", one_in_front),
    *_SHARED,
    Rule("blocks.*.attn.q_bias", f"{_OURS}/attention/query/bias", flat),
    Rule("blocks.*.attn.v_bias", f"{_OURS}/attention/value/bias", flat),
    *TIMM_LAYER_SCALE,
    Rule("blocks.*.mlp.fc1_g.weight", f"{_OURS}/mlp/gate/kernel", out_in_to_in_out),
    Rule("blocks.*.mlp.fc1_g.bias", f"{_OURS}/mlp/gate/bias"),
    Rule("blocks.*.mlp.fc1_x.weight", f"{_OURS}/mlp/fc1/kernel", out_in_to_in_out, beside=_GATE),
    Rule("blocks.*.mlp.fc1_x.bias", f"{_OURS}/mlp/fc1/bias", beside=_GATE),
    *MLP,
)
BFLOAT16 = 2**-7
"""How far a period may be from its rounded self, as a share."""


def _spec(given: Given, *, head_dim: int, registers: str, gate: str, biases: str) -> EncoderSpec:
    """The spec of a file without a configuration, from its shapes and its row of the catalog."""
    width, _, patch, _ = given.shape("patch_embed.proj.weight", 4)
    if width % head_dim:
        raise UserError(f"{given.name}: heads of {head_dim} do not fill a width of {width}")
    gated, pictures = given.has(gate), _row(given).preprocessing
    blocks = BlockSpec(
        width=width,
        num_blocks=given.count("blocks.*.norm1.weight"),
        num_heads=width // head_dim,
        mlp_width=given.shape(gate.replace("*", "0") if gated else "blocks.0.mlp.fc1.weight", 2)[0],
        activation="silu" if gated else families.EXACT_GELU,
        norm_eps=families.DINOV3_EPS,
        layer_scale=True,
        gated_mlp=gated,
        qkv_bias="qv" if given.has(biases) else "none",
        rotary=families.DINOV3_ROTARY,
    )
    image = ImageSpec(
        image_size=pictures.image_size,
        patch_size=patch,
        blocks=blocks,
        class_token=True,
        pooling="class",
        trained_registers=given.shape(registers, 3)[1],
        position_table=False,
    )
    return EncoderSpec(given.name, "dinov3", image, pictures, normalize=False)


def _row(given: Given) -> EncoderSpec:
    """The spec of the catalog's row. Raises UserError where there is none: tensors do not show mean and std."""
    if given.row is None or given.row.spec is None:
        raise UserError(
            f"{given.name} is a DINOv3 whose tensors do not show whether it saw the web or satellites, which have other means; "
            "name its row of the catalog with --name, e.g. --name dinov3_vitb16"
        )
    return given.row.spec


def meta_spec(given: Given) -> EncoderSpec:
    """The spec of one of Meta's files. Rotary periods, where it has them, show the heads and must be those of the family's base; else the
    row of the catalog says how wide heads are."""
    gate, biases = "blocks.*.mlp.w1.weight", "blocks.*.attn.qkv.bias"
    spec_of = functools.partial(_spec, given, registers="storage_tokens", gate=gate, biases=biases)
    if not given.has("rope_embed.periods"):
        return spec_of(head_dim=_row(given).image.blocks.head_dim)
    quarter = given.shape("rope_embed.periods", 1)[0]
    periods = given.tensors["rope_embed.periods"].read().astype(np.float64)
    base = families.DINOV3_ROTARY.base
    if not np.all(np.abs(periods / base ** (np.arange(quarter) / quarter) - 1) <= BFLOAT16):
        raise UserError(
            f"{given.name}: rope_embed.periods are not those of the base {base:g}, which every published DINOv3 has"
        )
    return spec_of(head_dim=4 * quarter)


def timm_spec(given: Given) -> EncoderSpec:
    """The spec of one of timm's files; the row of the catalog says how wide heads are."""
    gate, biases = "blocks.*.mlp.fc1_g.weight", "blocks.*.attn.q_bias"
    head_dim = _row(given).image.blocks.head_dim
    return _spec(given, head_dim=head_dim, registers="reg_token", gate=gate, biases=biases)


def with_masked_bias(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Biases as Meta's code uses them: times `bias_mask`, which is zero for the key."""
    masks = {name: tensor for name, tensor in tensors.items() if name.endswith(".attn.qkv.bias_mask")}
    rest = {name: tensor for name, tensor in tensors.items() if name not in masks}
    for name, mask in masks.items():
        bias = rest.get(name.removesuffix("_mask"))
        if bias is not None and bias.shape == mask.shape:
            read = functools.partial(_masked, bias, mask)
            rest[name.removesuffix("_mask")] = dataclasses.replace(bias, read=read)
    return rest


def _masked(bias: StoredTensor, mask: StoredTensor) -> np.ndarray:
    kept = mask.read() != 0
    return np.where(kept, bias.read() * mask.read(), np.zeros((), bias.dtype))


META = Format(
    name="Meta DINOv3",
    marks=("cls_token", "storage_tokens", "blocks.*.ls1.gamma"),
    rules=META_RULES,
    spec=meta_spec,
    ignored=("mask_token", "rope_embed.periods", "local_cls_norm.*"),
    heads=("head.*", "projectors.*"),
    repair=with_masked_bias,
)
TIMM = Format(
    name="timm DINOv3",
    marks=("cls_token", "reg_token", "blocks.*.gamma_1", "blocks.*.attn.qkv.weight"),
    rules=TIMM_RULES,
    spec=timm_spec,
    heads=("head.*",),
)
