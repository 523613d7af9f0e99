"""The blocks of a tower: their sizes, their norms, their biases, and positions that turn queries and keys."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec_json import added

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]

SIDE, WIDTH, BLOCKS, TOKENS, WORDS, NAME = 1 << 13, 1 << 16, 1 << 10, 1 << 16, 1 << 22, 300
"""The most that a spec may state of pixels a side, of channels, of blocks (heads, trained registers, patches a side), of tokens, of words
in a vocabulary, of characters in a name: far beyond what is known, far below what a mistake or a hostile file asks for."""
LARGEST_BASE = 1e9
"""Of rotary positions."""


class ImpossibleSpec(UserError):
    """A size or number that no encoder has."""


def check_ranges(spec: Any, **ranges: tuple[int, int]) -> None:
    """Raises UserError for the first number outside its range; what is None is not asked."""
    for name, (least, most) in ranges.items():
        value = getattr(spec, name)
        if value is not None and not least <= value <= most:
            raise ImpossibleSpec(f"{name} must be {least}..{most}, got {value}")


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Positions that turn the queries and keys of patches; class tokens and trained registers have none and do not turn.

    A head's K numbers are K/2 pairs: K/2 apart (`half`) or neighbours (`interleaved`). The first K/4 pairs turn with `first_axis`, the
    others with the other axis, pair i at coordinate / base**(4 i / K). Coordinates are 2 pi times the patch's centre, from -1 to 1 along
    its own side (`normalized`), or its number from `offset` on (`integer`), scaled as if the side had `reference` patches, where that is
    given. Angles are float32."""

    base: float
    layout: Literal["half", "interleaved"] = "half"
    first_axis: Literal["rows", "columns"] = "rows"
    coordinates: Literal["normalized", "integer"] = "normalized"
    offset: int = 0
    reference: int | None = added(None)

    def __post_init__(self) -> None:
        if not 1 < self.base <= LARGEST_BASE:
            raise ImpossibleSpec(
                f"the base of rotary positions must be above 1 and at most {LARGEST_BASE:g}, got {self.base}"
            )
        check_ranges(self, offset=(0, BLOCKS), reference=(1, BLOCKS))


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """A stack of pre-norm transformer blocks: `num_blocks` of width D with H heads of size K and an MLP of width F.

    `qkv_bias` says which of the projections to queries, keys and values have one, `bias` whether the other layers do. `norm`: LayerNorm,
    or RMSNorm, which subtracts no mean and has no bias. `qk_norm`: queries and keys are normed by the same, before positions turn them,
    each head by itself or all heads of a token as one (`width`). `inner_norms`: what attention has mixed and what enters the second
    MLP layer are normed too. `padded`: rows of zeros are no tokens; nothing sees them, and they leave every block as zeros."""

    width: int
    num_blocks: int
    num_heads: int
    mlp_width: int
    activation: Activation
    norm_eps: float
    layer_scale: bool = False
    gated_mlp: bool = False
    causal: bool = False
    qkv_bias: Literal["qkv", "qv", "none"] = added("qkv")
    rotary: Rotary | None = added(None)
    padded: bool = added(False)
    bias: bool = added(True)
    norm: Literal["layer", "rms"] = added("layer")
    qk_norm: Literal["none", "head", "width"] = added("none")
    inner_norms: bool = added(False)

    def __post_init__(self) -> None:
        check_ranges(self, width=(1, WIDTH), num_blocks=(0, BLOCKS), num_heads=(1, BLOCKS), mlp_width=(1, 8 * WIDTH))
        if self.width % self.num_heads:
            raise ImpossibleSpec(f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}")
        if not 0 < self.norm_eps < 1:
            raise ImpossibleSpec(f"norm_eps must be between 0 and 1, got {self.norm_eps}")
        if self.rotary is not None and self.head_dim % 4:
            raise ImpossibleSpec(f"rotary positions need heads of a multiple of 4, got {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """K = D / H."""
        return self.width // self.num_heads
