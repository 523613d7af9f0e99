"""dino.txt's head and text tower in a page of PyTorch, from its paper (2412.16334) and its released names: what the port is held to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

WIDTH, HEADS, BLOCKS, MLP = 128, 2, 2, 96
TEXT_WIDTH, TEXT_BLOCKS, VOCABULARY, CONTEXT = 64, 2, 120, 9
HEAD, TEXT = "visual_model.head.", "text_model.backbone."
State = Mapping[str, torch.Tensor]


def drawn() -> dict[str, torch.Tensor]:
    """All parameters of a small head and its texts, by the names of Meta's file."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int, scale: float = 1.0, around: float = 0.0) -> torch.Tensor:
        return around + scale * torch.randn(*shape, generator=generator)

    state: dict[str, torch.Tensor] = {}

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = normal(outputs, inputs, scale=inputs**-0.5)
        if bias:
            state[f"{name}.bias"] = normal(outputs, scale=0.3)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = normal(width, scale=0.3, around=1.0), normal(width, scale=0.3)

    for block in range(BLOCKS):
        here = f"{HEAD}blocks.{block}"
        norm(f"{here}.norm1", WIDTH)
        norm(f"{here}.norm2", WIDTH)
        linear(f"{here}.attn.qkv", WIDTH, 3 * WIDTH, bias=False)
        linear(f"{here}.attn.proj", WIDTH, WIDTH)
        for name, shape in (("w1", (WIDTH, MLP)), ("w2", (WIDTH, MLP)), ("w3", (MLP, WIDTH))):
            linear(f"{here}.mlp.{name}", *shape)
        for name in ("ls1", "ls2"):
            state[f"{here}.{name}.gamma"] = normal(WIDTH, scale=0.3)
    norm(f"{HEAD}ln_final", WIDTH)
    state[f"{TEXT}token_embedding.weight"] = normal(VOCABULARY, TEXT_WIDTH, scale=0.3)
    state[f"{TEXT}positional_embedding"] = normal(CONTEXT, TEXT_WIDTH, scale=0.3)
    for block in range(TEXT_BLOCKS):
        here = f"{TEXT}blocks.{block}"
        norm(f"{here}.attention_norm", TEXT_WIDTH)
        norm(f"{here}.ffn_norm", TEXT_WIDTH)
        linear(f"{here}.attention.qkv", TEXT_WIDTH, 3 * TEXT_WIDTH, bias=False)
        linear(f"{here}.attention.proj", TEXT_WIDTH, TEXT_WIDTH)
        linear(f"{here}.feed_forward.fc1", TEXT_WIDTH, 4 * TEXT_WIDTH)
        linear(f"{here}.feed_forward.fc2", 4 * TEXT_WIDTH, TEXT_WIDTH)
    norm(f"{TEXT}ln_final", TEXT_WIDTH)
    linear("text_model.head.linear_projection", TEXT_WIDTH, 2 * WIDTH, bias=False)
    state["logit_scale"] = torch.tensor([2.3])
    return state


def _norm(state: State, name: str, hidden: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(hidden, hidden.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def _linear(state: State, name: str, hidden: torch.Tensor) -> torch.Tensor:
    return functional.linear(hidden, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _attention(state: State, name: str, hidden: torch.Tensor, heads: int, causal: bool) -> torch.Tensor:
    parts = _linear(state, f"{name}.qkv", hidden).unflatten(-1, (3, heads, -1))
    query, key, value = (each.transpose(1, 2) for each in parts.unbind(2))
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return _linear(state, f"{name}.proj", mixed.transpose(1, 2).flatten(2))


def pictures(state: State, tokens: torch.Tensor, registers: int) -> torch.Tensor:
    """Features of pictures from the trunk's normed tokens."""
    for block in range(BLOCKS):
        here = f"{HEAD}blocks.{block}"
        mixed = _attention(state, f"{here}.attn", _norm(state, f"{here}.norm1", tokens), HEADS, causal=False)
        tokens = tokens + state[f"{here}.ls1.gamma"] * mixed
        normed = _norm(state, f"{here}.norm2", tokens)
        inner = functional.silu(_linear(state, f"{here}.mlp.w1", normed)) * _linear(state, f"{here}.mlp.w2", normed)
        tokens = tokens + state[f"{here}.ls2.gamma"] * _linear(state, f"{here}.mlp.w3", inner)
    tokens = _norm(state, f"{HEAD}ln_final", tokens)
    return torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(dim=1)], dim=-1)


def texts(state: State, ids: torch.Tensor) -> torch.Tensor:
    """Features of texts, read at their largest id."""
    hidden = state[f"{TEXT}token_embedding.weight"][ids] + state[f"{TEXT}positional_embedding"][: ids.shape[1]]
    for block in range(TEXT_BLOCKS):
        here = f"{TEXT}blocks.{block}"
        normed = _norm(state, f"{here}.attention_norm", hidden)
        hidden = hidden + _attention(state, f"{here}.attention", normed, TEXT_WIDTH // 64, causal=True)
        inner = functional.gelu(_linear(state, f"{here}.feed_forward.fc1", _norm(state, f"{here}.ffn_norm", hidden)))
        hidden = hidden + _linear(state, f"{here}.feed_forward.fc2", inner)
    hidden = _norm(state, f"{TEXT}ln_final", hidden)
    read = hidden[torch.arange(len(ids)), ids.argmax(dim=1)]
    return _linear(state, "text_model.head.linear_projection", read)
