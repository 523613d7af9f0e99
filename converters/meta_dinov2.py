"""Meta's DINOv2 files (`dinov2_vitb14_pretrain.pth` and the like), as torch hub loads them."""

from __future__ import annotations

import re

from regcache_jax.converters.engine import (
    Rule,
    StoredTensor,
    flat,
    oihw_to_hwio,
    one_in_front,
    out_heads_to_heads_out,
    out_in_to_in_out,
    two_in_front,
)
from regcache_jax.converters.formats import Format, Given
from regcache_jax.converters.huggingface_dinov2 import evaluated_pixels

from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec
from regcache_jax.encoders import families

_OURS = "image/blocks"
_GATE = f"{_OURS}/mlp/gate/kernel"
_QKV = tuple(f"{_OURS}/attention/{name}" for name in ("query", "key", "value"))

# What Meta's, timm's and (for SigLIP's image tower) open_clip's files share.
BLOCKS = (
    Rule("patch_embed.proj.weight", "image/patch_embedding/kernel", oihw_to_hwio),
    Rule("patch_embed.proj.bias", "image/patch_embedding/bias"),
    Rule("blocks.*.norm1.weight", f"{_OURS}/norm1/scale"),
    Rule("blocks.*.norm1.bias", f"{_OURS}/norm1/bias"),
    Rule("blocks.*.attn.qkv.weight", tuple(f"{name}/kernel" for name in _QKV), out_in_to_in_out),
    Rule("blocks.*.attn.qkv.bias", tuple(f"{name}/bias" for name in _QKV), flat),
    Rule("blocks.*.attn.proj.weight", f"{_OURS}/attention/out/kernel", out_heads_to_heads_out),
    Rule("blocks.*.attn.proj.bias", f"{_OURS}/attention/out/bias"),
    Rule("blocks.*.ls1.gamma", f"{_OURS}/layer_scale1"),
    Rule("blocks.*.norm2.weight", f"{_OURS}/norm2/scale"),
    Rule("blocks.*.norm2.bias", f"{_OURS}/norm2/bias"),
    Rule("blocks.*.ls2.gamma", f"{_OURS}/layer_scale2"),
    Rule("norm.weight", "image/final_norm/scale"),
    Rule("norm.bias", "image/final_norm/bias"),
)
MLP = (
    Rule("blocks.*.mlp.fc1.weight", f"{_OURS}/mlp/fc1/kernel", out_in_to_in_out),
    Rule("blocks.*.mlp.fc1.bias", f"{_OURS}/mlp/fc1/bias"),
    Rule("blocks.*.mlp.fc2.weight", f"{_OURS}/mlp/fc2/kernel", out_in_to_in_out),
    Rule("blocks.*.mlp.fc2.bias", f"{_OURS}/mlp/fc2/bias"),
)
RULES = (
    Rule("cls_token", "image/class_token", two_in_front),
    Rule("register_tokens", "image/registers", one_in_front),
    Rule("pos_embed", "image/position_embedding", one_in_front),
    *BLOCKS,
    # The gated MLP of the giant model: gate and up projection in one, the gate first.
    Rule("blocks.*.mlp.w12.weight", (f"{_OURS}/mlp/gate/kernel", f"{_OURS}/mlp/fc1/kernel"), out_in_to_in_out),
    Rule("blocks.*.mlp.w12.bias", (f"{_OURS}/mlp/gate/bias", f"{_OURS}/mlp/fc1/bias")),
    Rule("blocks.*.mlp.w3.weight", f"{_OURS}/mlp/fc2/kernel", out_in_to_in_out, beside=_GATE),
    Rule("blocks.*.mlp.w3.bias", f"{_OURS}/mlp/fc2/bias", beside=_GATE),
    *MLP,
)
HEAD_DIM = 64  # every published DINOv2


def dinov2_spec(given: Given, *, registers: int, rows_before_patches: int, gated: bool, mlp_width: int) -> EncoderSpec:
    """The spec of a DINOv2 whose file has no configuration, from its shapes."""
    width, _, patch, _ = given.shape("patch_embed.proj.weight", 4)
    grid = given.side(given.shape("pos_embed", 3)[1] - rows_before_patches)
    pixels = evaluated_pixels(grid * patch)
    image = ImageSpec(
        image_size=pixels,
        patch_size=patch,
        blocks=BlockSpec(
            width=width,
            num_blocks=given.count("blocks.*.norm1.weight"),
            num_heads=max(1, width // HEAD_DIM),
            mlp_width=mlp_width,
            activation="silu" if gated else "gelu",
            norm_eps=1e-6,
            layer_scale=True,
            gated_mlp=gated,
        ),
        class_token=True,
        pooling="class",
        trained_registers=registers,
        position_grid=grid,
        position_interpolation="bicubic_antialias" if registers else "bicubic_offset",
    )
    return EncoderSpec(given.name, "dinov2", image, families.dinov2_preprocessing(pixels), normalize=False)


def spec(given: Given) -> EncoderSpec:
    """The spec of one of Meta's files."""
    gated = given.has("blocks.*.mlp.w12.weight")
    return dinov2_spec(
        given,
        registers=given.shape("register_tokens", 3)[1] if given.has("register_tokens") else 0,
        rows_before_patches=1,
        gated=gated,
        mlp_width=given.shape("blocks.0.mlp.w3.weight", 2)[1]
        if gated
        else given.shape("blocks.0.mlp.fc1.weight", 2)[0],
    )


def without_chunks(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """`blocks.CHUNK.N.` as FSDP's chunks have it, read as `blocks.N.`: blocks keep their numbers."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): tensor for name, tensor in tensors.items()}


FORMAT = Format(
    name="Meta DINOv2",
    marks=("cls_token", "mask_token", "blocks.*.ls1.gamma"),
    rules=RULES,
    spec=spec,
    ignored=("mask_token",),
    heads=("dino_head.*", "ibot_head.*", "head.*"),
    repair=without_chunks,
)
