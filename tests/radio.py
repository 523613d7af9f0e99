"""A small C-RADIO in a page of PyTorch, from NVIDIA's description and the names of its folders: what the port is held to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

WIDTH, PATCH, GRID, TOKENS, BLOCKS, MLP = 64, 8, 9, 5, 2, 96
BELOW = "radio_model.model."
linear, layer_norm = torch.nn.functional.linear, torch.nn.functional.layer_norm


def drawn() -> dict[str, torch.Tensor]:
    """Random tensors under the names of a folder; heads are 64 wide."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, around: float = 0.0) -> torch.Tensor:
        return around + (0.3 if len(shape) == 1 else shape[-1] ** -0.5) * torch.randn(shape, generator=draw)

    held = {
        "patch_generator.embedder.weight": normal(WIDTH, 3 * PATCH**2),
        "patch_generator.pos_embed": normal(1, GRID**2, WIDTH),
        "patch_generator.cls_token.token": normal(TOKENS, WIDTH),
    }
    for block in range(BLOCKS):
        for norm in ("norm1", "norm2"):
            held[f"blocks.{block}.{norm}.weight"], held[f"blocks.{block}.{norm}.bias"] = (
                normal(WIDTH, around=1),
                normal(WIDTH),
            )
        sizes = {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (MLP, WIDTH),
            "mlp.fc2": (WIDTH, MLP),
        }
        for name, (outputs, inputs) in sizes.items():
            held[f"blocks.{block}.{name}.weight"], held[f"blocks.{block}.{name}.bias"] = (
                normal(outputs, inputs),
                normal(outputs),
            )
    tensors = {f"{BELOW}{name}": tensor for name, tensor in held.items()}
    tensors["radio_model.input_conditioner.norm_mean"] = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)
    tensors["radio_model.input_conditioner.norm_std"] = torch.tensor([0.2, 0.3, 0.25]).reshape(3, 1, 1)
    tensors["radio_model.summary_idxs"] = torch.tensor([0, 1])
    return tensors


def by_definition(state: dict[str, torch.Tensor], images: np.ndarray) -> torch.Tensor:
    """What leaves the last block, of pictures that are normalised."""
    own = {name.removeprefix(BELOW): tensor for name, tensor in state.items()}
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    patches = torch.nn.functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
    side = math.isqrt(patches.shape[1])
    table = own["patch_generator.pos_embed"].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, (side, side), mode="bilinear", align_corners=False)
    hidden = linear(patches, own["patch_generator.embedder.weight"]) + table.flatten(2).transpose(1, 2)
    hidden = torch.cat([own["patch_generator.cls_token.token"].expand(len(images), -1, -1), hidden], dim=1)
    for block in range(BLOCKS):
        at = {name.removeprefix(f"blocks.{block}."): tensor for name, tensor in own.items()}
        normed = layer_norm(hidden, (WIDTH,), at["norm1.weight"], at["norm1.bias"], 1e-6)
        query, key, value = linear(normed, at["attn.qkv.weight"], at["attn.qkv.bias"]).chunk(3, dim=-1)
        mixed = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(WIDTH), dim=-1) @ value  # one head
        hidden = hidden + linear(mixed, at["attn.proj.weight"], at["attn.proj.bias"])
        normed = layer_norm(hidden, (WIDTH,), at["norm2.weight"], at["norm2.bias"], 1e-6)
        up = torch.nn.functional.gelu(linear(normed, at["mlp.fc1.weight"], at["mlp.fc1.bias"]))
        hidden = hidden + linear(up, at["mlp.fc2.weight"], at["mlp.fc2.bias"])
    return hidden


def folder(place: Path, state: dict[str, torch.Tensor]) -> str:
    """A folder as the hub has it."""
    save_file(state, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"architectures": ["RADIOModel"], "model_type": ""}))
    return str(place)
