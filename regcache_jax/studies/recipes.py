"""Recipes: what a comparison tries, each the options of a scheme under a short name (docs/quantization.md)."""

from __future__ import annotations

from typing import Any

from regcache_jax.core.errors import UserError
from regcache_jax.core.scheme import Scheme

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
"""What is tried unless others are asked for: all that takes seconds on a small encoder."""


def scheme_of(recipe: str, bits: str) -> Scheme:
    """The scheme of a recipe at `w8a8` and the like. Raises UserError for unknown recipes and for `float`."""
    if recipe not in RECIPES:
        raise UserError(f"unknown recipe {recipe!r}; recipes are {', '.join(RECIPES)}")
    scheme = Scheme.named(bits, **RECIPES[recipe])
    if scheme is None:
        raise UserError("float is not a number of bits; try w8a8, w6a6 or w4a4")
    return scheme
