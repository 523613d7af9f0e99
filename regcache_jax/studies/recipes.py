"""Recipes: what a comparison tries, each the options of a scheme under a short name (docs/quantization.md)."""

from __future__ import annotations

import dataclasses
from typing import Any

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.options import check_fields, option
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig

RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {},
    "asymmetric": {"symmetric": False},
    "percentile": {"estimator": "percentile"},
    "mse": {"estimator": "mse"},
    "entropy": {"estimator": "entropy"},
    "group": {"activations": "group"},
    "tensor": {"activations": "tensor"},
    "token": {"activations": "token"},
    "clipping": {"method": "clipping", "estimator": "mse"},
    "bias_correction": {"method": "bias_correction"},
    "noisyquant": {"method": "noisyquant"},
    "gptq": {"method": "gptq"},
    "erq": {"method": "erq"},
    "ptq4vit": {"method": "ptq4vit"},
    "fima_q": {"method": "fima_q"},
    "awq": {"method": "awq"},
    "repq_vit": {"method": "repq_vit", "symmetric": False},
    "rotation": {"method": "rotation"},
    "smoothquant": {"method": "smoothquant"},
    "strong": {"method": "smoothquant+erq", "symmetric": False},
    "strong-token": {"method": "smoothquant+erq", "activations": "token"},
    "learned": {"method": "smoothquant+fima_q"},
    "all-integer": {"method": "smoothquant+erq", "symmetric": False, "products": ("qk", "pv")},
    "log-softmax": {"method": "smoothquant+erq", "symmetric": False, "products": ("qk", "pv"), "softmax": "log-sqrt2"},
}
"""`rtn` is the paper's setting; `strong` and `strong-token` combine what helps most with static and with measured scales,
`learned` what helps most at 4 bits (minutes, not seconds); `all-integer` is `strong` with attention's products as integers, and
`log-softmax` the same with RepQ-ViT's softmax."""


QUICK = tuple(name for name in RECIPES if name not in ("fima_q", "learned"))
"""What `compare` tries unless others are asked for: all that takes seconds on a small encoder."""

WORDS: dict[str, dict[str, Any]] = {
    "static": {},
    "group": {"activations": "group"},
    "tensor": {"activations": "tensor"},
    "token": {"activations": "token"},
    "symmetric": {},
    "asymmetric": {"symmetric": False},
    "absmax": {},
    "percentile": {"estimator": "percentile"},
    "mse": {"estimator": "mse"},
    "entropy": {"estimator": "entropy"},
    "qk": {"products": ("qk",)},
    "pv": {"products": ("pv",)},
    "qk,pv": {"products": ("qk", "pv")},
}
"""What may stand behind the method of a recipe that is composed: `smoothquant+erq@group@percentile`."""


def options_of(recipe: str) -> dict[str, Any]:
    """The options of a scheme that a recipe stands for: a name in `RECIPES`, or a method and `WORDS`, each after an @.

    Raises UserError for unknown ones."""
    if recipe in RECIPES:
        return RECIPES[recipe]
    method, *words = recipe.split("@")
    unknown = [word for word in words if word not in WORDS]
    if not words or unknown:
        raise UserError(
            f"unknown recipe {shown(recipe)!r}; recipes are {', '.join(RECIPES)}, and methods with @ and any of {', '.join(WORDS)}"
        )
    options: dict[str, Any] = {"method": method}
    for word in words:
        options |= WORDS[word]
    return options


def scheme_of(recipe: str, bits: str, weights: str = "channel") -> Scheme:
    """The scheme of a recipe at `w8a8` and the like. Raises UserError for unknown recipes, for parts that do not go together, and for
    `float`."""
    scheme = Scheme.named(bits, weights=weights, **options_of(recipe))
    if scheme is None:
        raise UserError("float is not a number of bits; try w8a8, w6a6 or w4a4")
    return scheme


@dataclasses.dataclass(frozen=True)
class AutoConfig:
    """What `auto` tries, and what it may choose. Raises UserError for values out of bounds."""

    bits: tuple[str, ...] = option("Bits of weights and activations.", ("w8a8",))
    recipes: tuple[str, ...] | None = option(
        "What to try, with commas, or all; by default recipes are composed of methods, sharing of scales and ranges.",
        None,
    )
    max_cost: float | None = option("At most so many times the cheapest recipe's cost.", None, unit="times", least=1)
    static_only: bool = option("No scales that are measured while running.", False)
    registers: bool = option("Search for registers as well.", True)
    search: SearchConfig = option(
        "How they are searched for; its objective is that of the recipes too.", SearchConfig()
    )
    seed: int = option("Of the draw that parts calibration and scoring pictures.", 0)

    def __post_init__(self) -> None:
        check_fields(self)
