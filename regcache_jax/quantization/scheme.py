"""How an encoder is quantised, as data: bits, who shares a scale, which sites stay in float (paper, setting of section 5)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

from regcache_jax.errors import UserError

SITES = ("qkv", "out", "fc1", "fc2")
"""The quantised inputs of a block: query/key/value projections (one input), attention output, first and second MLP layer."""

Activations = Literal["static", "tensor", "token", "group"]
Weights = Literal["channel", "tensor"]


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Symmetric integer weights and activations for every site of every block.

    `activations` says who shares an activation's scale: `static`, one calibrated scale a site (the paper's setting);
    `group`, calibrated scales for class token, trained registers and patches apart; `tensor`, one scale an array,
    measured as it passes; `token`, one scale a token, measured as it passes. `weights`: one scale an output channel, or one a
    kernel. Sites in `float_sites` are not quantised. Raises UserError for values outside those."""

    weight_bits: int = 8
    activation_bits: int = 8
    activations: Activations = "static"
    weights: Weights = "channel"
    float_sites: tuple[str, ...] = ()
    method: str = "rtn"

    def __post_init__(self) -> None:
        for name, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            if not 2 <= bits <= 8:
                raise UserError(f"{name} must be 2..8 (int8 containers), got {bits}")
        for name, value, allowed in (
            ("activations", self.activations, ("static", "tensor", "token", "group")),
            ("weights", self.weights, ("channel", "tensor")),
        ):
            if value not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        unknown = sorted(set(self.float_sites) - set(SITES))
        if unknown:
            raise UserError(f"float_sites has {', '.join(unknown)}; sites are {', '.join(SITES)}")

    @classmethod
    def named(cls, name: str, **options: Any) -> Scheme | None:
        """`w8a8`, `w6a6`, `w4a4` or any `w<2..8>a<2..8>` -> Scheme; `float` -> None. Raises UserError for other names."""
        if name == "float":
            return None
        match = re.fullmatch(r"w([2-8])a([2-8])", name.lower())
        if match is None:
            raise UserError(f"unknown scheme {name!r}; try w8a8, w6a6, w4a4 (any w2..8 a2..8) or float")
        return cls(weight_bits=int(match[1]), activation_bits=int(match[2]), **options)

    @property
    def name(self) -> str:
        """`w8a8` and the like."""
        return f"w{self.weight_bits}a{self.activation_bits}"

    @property
    def calibrated(self) -> bool:
        """Whether scales must be calibrated before anything runs."""
        return self.activations in ("static", "group")

    def to_json(self) -> dict[str, Any]:
        """The scheme as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Scheme:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()}
        return cls(**values)
