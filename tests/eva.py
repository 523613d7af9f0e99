"""EVA-02-CLIP's image tower in a page of PyTorch, from its paper (2303.15389) and timm's names: what the port is held to.

Rotary positions are complex numbers here, counted as if every side had 16 patches, and attention is torch's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

WIDTH, HEADS, MLP, BLOCKS, PATCH, GRID, OUT = 128, 2, 170, 2, 8, 5, 48
TEXT_WIDTH, TEXT_BLOCKS, VOCABULARY, CONTEXT = 64, 1, 120, 9
State = Mapping[str, torch.Tensor]


def drawn(texts: bool) -> dict[str, torch.Tensor]:
    """All parameters of a small one: timm's image tower, or open_clip's file of both."""
    generator = torch.Generator().manual_seed(2)
    state: dict[str, torch.Tensor] = {}

    def normal(*shape: int, scale: float = 0.3, around: float = 0.0) -> torch.Tensor:
        return around + scale * torch.randn(*shape, generator=generator)

    def linear(name: str, inputs: int, outputs: int, *, bias: bool = True, ending: str = ".") -> None:
        state[f"{name}{ending}weight"] = normal(outputs, inputs, scale=inputs**-0.5)
        if bias:
            state[f"{name}{ending}bias"] = normal(outputs)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = normal(width, around=1.0), normal(width)

    trunk = "visual.trunk." if texts else ""
    state[f"{trunk}cls_token"], state[f"{trunk}pos_embed"] = normal(1, 1, WIDTH), normal(1, 1 + GRID**2, WIDTH)
    state[f"{trunk}patch_embed.proj.weight"] = normal(WIDTH, 3, PATCH, PATCH, scale=(3 * PATCH**2) ** -0.5)
    state[f"{trunk}patch_embed.proj.bias"] = normal(WIDTH)
    for block in range(BLOCKS):
        here = f"{trunk}blocks.{block}"
        for name, width in (("norm1", WIDTH), ("norm2", WIDTH), ("attn.norm", WIDTH), ("mlp.norm", MLP)):
            norm(f"{here}.{name}", width)
        for name in ("q_proj", "k_proj", "v_proj", "proj"):
            linear(f"{here}.attn.{name}", WIDTH, WIDTH, bias=name != "k_proj")
        for name, shape in (("fc1_g", (WIDTH, MLP)), ("fc1_x", (WIDTH, MLP)), ("fc2", (MLP, WIDTH))):
            linear(f"{here}.mlp.{name}", *shape)
    norm(f"{trunk}norm", WIDTH)
    linear(f"{trunk}head", WIDTH, OUT)
    if texts:
        state["text.token_embedding.weight"] = normal(VOCABULARY, TEXT_WIDTH)
        state["text.positional_embedding"] = normal(CONTEXT, TEXT_WIDTH)
        for block in range(TEXT_BLOCKS):
            here = f"text.transformer.resblocks.{block}"
            norm(f"{here}.ln_1", TEXT_WIDTH)
            norm(f"{here}.ln_2", TEXT_WIDTH)
            linear(f"{here}.attn", TEXT_WIDTH, 3 * TEXT_WIDTH, ending=".in_proj_")
            linear(f"{here}.attn.out_proj", TEXT_WIDTH, TEXT_WIDTH)
            linear(f"{here}.mlp.c_fc", TEXT_WIDTH, 4 * TEXT_WIDTH)
            linear(f"{here}.mlp.c_proj", 4 * TEXT_WIDTH, TEXT_WIDTH)
        norm("text.ln_final", TEXT_WIDTH)
        state["text.text_projection"] = normal(TEXT_WIDTH, OUT, scale=TEXT_WIDTH**-0.5)
        state["logit_scale"] = torch.tensor(2.3)
    return state


def _norm(state: State, name: str, hidden: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(hidden, hidden.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def _linear(state: State, name: str, hidden: torch.Tensor) -> torch.Tensor:
    return functional.linear(hidden, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _turned(heads: torch.Tensor, grid: int) -> torch.Tensor:
    """Patches' queries or keys `[B, H, 1 + N, K]`, each pair of neighbours a complex number that is turned; the class token's are not."""
    pairs = heads.shape[-1] // 4
    place = torch.arange(grid, dtype=torch.float32) / grid * 16
    angles = place[:, None] * 10_000.0 ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    rows, columns = angles[:, None].expand(grid, grid, pairs), angles[None].expand(grid, grid, pairs)
    turn = torch.polar(torch.ones(grid * grid, 2 * pairs), torch.cat([rows, columns], dim=-1).flatten(0, 1))
    numbers = torch.view_as_complex(heads[:, :, 1:].unflatten(-1, (2 * pairs, 2)).contiguous())
    return torch.cat([heads[:, :, :1], torch.view_as_real(numbers * turn).flatten(-2)], dim=2)


def tower(state: State, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What enters each block, and the features."""
    grid = images.shape[-1] // PATCH
    patches = functional.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    tokens = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    hidden, entering = tokens + state["pos_embed"], []
    for block in range(BLOCKS):
        entering.append(hidden)
        here = f"blocks.{block}"
        normed = _norm(state, f"{here}.norm1", hidden)
        query, key, value = (
            _linear(state, f"{here}.attn.{name}_proj", normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in "qkv"
        )
        mixed = functional.scaled_dot_product_attention(_turned(query, grid), _turned(key, grid), value)
        mixed = _norm(state, f"{here}.attn.norm", mixed.transpose(1, 2).flatten(2))
        hidden = hidden + _linear(state, f"{here}.attn.proj", mixed)
        normed = _norm(state, f"{here}.norm2", hidden)
        inner = functional.silu(_linear(state, f"{here}.mlp.fc1_g", normed)) * _linear(
            state, f"{here}.mlp.fc1_x", normed
        )
        hidden = hidden + _linear(state, f"{here}.mlp.fc2", _norm(state, f"{here}.mlp.norm", inner))
    return entering, _linear(state, "head", _norm(state, "norm", hidden)[:, 0])
