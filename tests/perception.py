"""Meta's Perception Encoder in a page of PyTorch, from its paper (2504.13181) and its released sizes: what the port is held to.

Rotary positions are complex numbers here, and attention is torch's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

WIDTH, HEADS, MLP, BLOCKS, PATCH, GRID, OUT = 128, 2, 160, 3, 8, 5, 48
TEXT_WIDTH, TEXT_BLOCKS, VOCABULARY, CONTEXT = 64, 2, 120, 9
POOL_HEADS = 8
State = Mapping[str, torch.Tensor]


def drawn(class_token: bool, core: bool, layer_scale: bool) -> dict[str, torch.Tensor]:
    """All parameters of a small one, by the names of Meta's files."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0, around: float = 0.0) -> torch.Tensor:
        return around + scale * torch.randn(*shape, generator=generator)

    state: dict[str, torch.Tensor] = {}

    def linear(name: str, inputs: int, outputs: int, ending: str = ".") -> None:
        state[f"{name}{ending}weight"] = normal(outputs, inputs, scale=inputs**-0.5)
        state[f"{name}{ending}bias"] = normal(outputs, scale=0.3)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = normal(width, scale=0.3, around=1.0), normal(width, scale=0.3)

    def blocks(name: str, count: int, width: int, mlp: int, scaled: bool) -> None:
        for block in range(count):
            here = f"{name}transformer.resblocks.{block}"
            norm(f"{here}.ln_1", width)
            norm(f"{here}.ln_2", width)
            linear(f"{here}.attn", width, 3 * width, ".in_proj_")
            linear(f"{here}.attn.out_proj", width, width)
            linear(f"{here}.mlp.c_fc", width, mlp)
            linear(f"{here}.mlp.c_proj", mlp, width)
            for number in (1, 2) if scaled else ():
                state[f"{here}.ls_{number}.gamma"] = normal(width, scale=0.3)

    state["visual.conv1.weight"] = normal(WIDTH, 3, PATCH, PATCH, scale=(3 * PATCH**2) ** -0.5)
    state["visual.positional_embedding"] = normal(class_token + GRID**2, WIDTH, scale=0.3)
    if class_token:
        state["visual.class_embedding"] = normal(WIDTH, scale=0.3)
    norm("visual.ln_pre", WIDTH)
    blocks("visual.", BLOCKS, WIDTH, MLP, layer_scale)
    if core:
        norm("visual.ln_post", WIDTH)
        state["visual.attn_pool.probe"] = normal(1, 1, WIDTH)
        linear("visual.attn_pool.attn", WIDTH, 3 * WIDTH, ".in_proj_")
        linear("visual.attn_pool.attn.out_proj", WIDTH, WIDTH)
        norm("visual.attn_pool.layernorm", WIDTH)
        linear("visual.attn_pool.mlp.c_fc", WIDTH, 4 * WIDTH)
        linear("visual.attn_pool.mlp.c_proj", 4 * WIDTH, WIDTH)
        state["visual.proj"] = normal(WIDTH, OUT, scale=WIDTH**-0.5)
        state["token_embedding.weight"] = normal(VOCABULARY, TEXT_WIDTH, scale=0.3)
        state["positional_embedding"] = normal(CONTEXT, TEXT_WIDTH, scale=0.3)
        blocks("", TEXT_BLOCKS, TEXT_WIDTH, 2 * TEXT_WIDTH, False)
        norm("ln_final", TEXT_WIDTH)
        state["text_projection"] = normal(TEXT_WIDTH, OUT, scale=TEXT_WIDTH**-0.5)
        state["logit_scale"] = torch.tensor(2.3)
    return state


def _norm(state: State, name: str, hidden: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(hidden, hidden.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def _linear(state: State, name: str, hidden: torch.Tensor) -> torch.Tensor:
    return functional.linear(hidden, state[f"{name}.weight"], state[f"{name}.bias"])


def _mlp(state: State, name: str, hidden: torch.Tensor) -> torch.Tensor:
    return _linear(state, f"{name}.c_proj", functional.gelu(_linear(state, f"{name}.c_fc", hidden)))


def _attend(
    state: State, name: str, query: torch.Tensor, tokens: torch.Tensor, heads: int, turn=None, causal: bool = False
) -> torch.Tensor:
    weights, biases = state[f"{name}.in_proj_weight"].chunk(3), state[f"{name}.in_proj_bias"].chunk(3)
    parts = [
        functional.linear(source, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for source, weight, bias in zip((query, tokens, tokens), weights, biases, strict=True)
    ]
    if turn is not None:
        parts[:2] = [
            torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
            for part in parts[:2]
        ]
    mixed = functional.scaled_dot_product_attention(*parts, is_causal=causal)
    return _linear(state, f"{name}.out_proj", mixed.transpose(1, 2).flatten(-2))


def _block(state: State, name: str, hidden: torch.Tensor, heads: int, **options) -> torch.Tensor:
    normed = _norm(state, f"{name}.ln_1", hidden)
    one = torch.ones(())
    hidden = hidden + state.get(f"{name}.ls_1.gamma", one) * _attend(
        state, f"{name}.attn", normed, normed, heads, **options
    )
    return hidden + state.get(f"{name}.ls_2.gamma", one) * _mlp(
        state, f"{name}.mlp", _norm(state, f"{name}.ln_2", hidden)
    )


def _turn(rows: int, columns: int, class_token: bool) -> torch.Tensor:
    """A complex number a token and pair: the first quarter of a head's numbers turns with the column, the next with the row. Places count
    from 0, or from 1 behind a class token, which does not turn."""
    pairs = WIDTH // HEADS // 4
    frequency = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [(axis.reshape(-1, 1) + class_token) * frequency for axis in (x, y)]
    angle = torch.cat(angles, dim=1)
    angle = torch.cat([torch.zeros(int(class_token), 2 * pairs), angle])
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def image(state: State, pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Hidden states that enter each block, and the feature (Core) or all tokens; `pixels` is [B, 3, Y, X]."""
    class_token = "visual.class_embedding" in state
    patches = functional.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH)
    rows, columns = patches.shape[2:]
    table = state["visual.positional_embedding"]
    grid = table[int(class_token) :].T.reshape(1, WIDTH, GRID, GRID)
    grid = functional.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
    hidden = (patches + grid).flatten(2).transpose(1, 2)
    if class_token:
        first = (state["visual.class_embedding"] + table[0]).expand(len(hidden), 1, -1)
        hidden = torch.cat([first, hidden], dim=1)
    hidden, turn, entering = _norm(state, "visual.ln_pre", hidden), _turn(rows, columns, class_token), []
    for block in range(BLOCKS):
        entering.append(hidden)
        hidden = _block(state, f"visual.transformer.resblocks.{block}", hidden, HEADS, turn=turn)
    if "visual.proj" not in state:
        return entering, hidden
    tokens, pool = _norm(state, "visual.ln_post", hidden), "visual.attn_pool"
    probe = state[f"{pool}.probe"].expand(len(tokens), -1, -1)
    pooled = _attend(state, f"{pool}.attn", probe, tokens, POOL_HEADS)
    pooled = pooled + _mlp(state, f"{pool}.mlp", _norm(state, f"{pool}.layernorm", pooled))
    return entering, pooled[:, 0] @ state["visual.proj"]


def text(state: State, ids: torch.Tensor, causal: bool = True) -> torch.Tensor:
    """Features of token ids, read at the largest."""
    hidden = state["token_embedding.weight"][ids] + state["positional_embedding"]
    for block in range(TEXT_BLOCKS):
        hidden = _block(state, f"transformer.resblocks.{block}", hidden, TEXT_WIDTH // 64, causal=causal)
    tokens = _norm(state, "ln_final", hidden)
    return tokens[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]
