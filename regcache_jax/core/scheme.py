"""How an encoder is quantised, as data: bits, who shares a scale, which sites stay in float (paper, setting of section 5)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from regcache_jax.core.errors import UserError
from regcache_jax.core.options import option, spelt_right

SITES = ("qkv", "out", "fc1", "fc2")
"""The quantised inputs of a block: query/key/value projections (one input), attention output, first and second MLP layer."""

SITE_LAYERS: dict[str, tuple[tuple[str, str], ...]] = {
    "qkv": (("attention", "query"), ("attention", "key"), ("attention", "value")),
    "out": (("attention", "out"),),
    "fc1": (("mlp", "fc1"), ("mlp", "gate")),
    "fc2": (("mlp", "fc2"),),
}
"""The layers that read each site's input."""

PRODUCT_INPUTS: dict[str, tuple[str, ...]] = {"qk": ("query", "key"), "pv": ("value",)}
"""Attention's own products, in float unless asked for, and the inputs that need a scale (softmax lies between 0 and 1)."""

INPUTS = SITES + tuple(each for inputs in PRODUCT_INPUTS.values() for each in inputs)
"""Everything in a block that may need a scale, in the order in which it passes."""

PARTS = ("head", "text")
"""What else can be quantised beside the image tower's blocks: attention pooling, and a transformer text tower."""

Activations = Literal["static", "tensor", "token", "group", "float"]
Weights = Literal["channel", "tensor"]
Estimator = Literal["absmax", "percentile", "mse", "entropy"]
Softmax = Literal["uniform", "log-sqrt2"]


class SiteBits(NamedTuple):
    """How one site of one block is quantised."""

    weight_bits: int
    activation_bits: int
    quantized: bool


@spelt_right
@dataclasses.dataclass(frozen=True)
class Rule:
    """What differs at some sites of some blocks (None: of all blocks); bits that are None are the scheme's own.

    `quantized=False` leaves the sites in float. Raises UserError for unknown sites and bits outside 2..8."""

    sites: tuple[str, ...] = SITES
    blocks: tuple[int, ...] | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    quantized: bool = True

    def __post_init__(self) -> None:
        _check_names("a rule's sites", self.sites, SITES)
        for name, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            if bits is not None:
                _check_bits(name, bits)

    def matches(self, site: str, block: int) -> bool:
        """Whether the rule speaks of this site of this block."""
        return site in self.sites and (self.blocks is None or block in self.blocks)


@spelt_right
@dataclasses.dataclass(frozen=True)
class Scheme:
    """Integer weights (symmetric) and activations for every site of every block.

    `activations` says who shares an activation's scale: `static`, one calibrated scale a site (the paper's setting);
    `group`, calibrated scales for class token, trained registers and patches apart; `tensor`, one scale an array,
    measured as it passes; `token`, one scale a token, measured as it passes; `float`, activations are not quantised.
    `weights`: one scale an output channel, or one a kernel. `symmetric=False` (static only) shifts the integers by a zero
    point, which costs nothing as it is folded into the bias. `estimator` turns the calibration set into a range;
    `percentile` is the share of values, in percent, inside it where it is the estimator.

    Sites in `float_sites` are not quantised; for the rest the first of the `rules` that matches decides. `method` names what is
    done beyond round-to-nearest, joined by + (see `quantization.methods`). `products`: which of q k^T and p v are integer
    products too (of `activation_bits`; symmetric; never grouped). `softmax`: the steps of its weights in p v, even ones or powers of
    the square root of two (`ops/half_octaves.py`: 16 of them at most, whatever the bits). `also`: the parts beside the image
    tower's blocks that are quantised, to the nearest, by the same scheme. `shared_over`: the mapped axis (of pmap) over
    whose devices a scale that is measured for a whole array is shared; None: each device measures its own. Raises UserError
    for values outside those."""

    weight_bits: int = 8
    activation_bits: int = 8
    activations: Activations = option("Who shares an activation's scale.", "static")
    weights: Weights = option("Who shares a weight's scale.", "channel")
    float_sites: tuple[str, ...] = ()
    method: str = option("Methods joined by +, such as smoothquant+gptq.", "rtn")
    symmetric: bool = True
    estimator: Estimator = option("How a static range is taken from what calibration saw.", "absmax")
    percentile: float = 99.99
    rules: tuple[Rule, ...] = ()
    products: tuple[str, ...] = ()
    softmax: Softmax = "uniform"
    also: tuple[str, ...] = ()
    shared_over: str | None = None

    def __post_init__(self) -> None:
        _check_bits("weight_bits", self.weight_bits)
        _check_bits("activation_bits", self.activation_bits)
        for name, value, allowed in (
            ("activations", self.activations, ("static", "tensor", "token", "group", "float")),
            ("weights", self.weights, ("channel", "tensor")),
            ("estimator", self.estimator, ("absmax", "percentile", "mse", "entropy")),
            ("softmax", self.softmax, ("uniform", "log-sqrt2")),
        ):
            if value not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        _check_names("float_sites", self.float_sites, SITES)
        _check_names("products", self.products, PRODUCT_INPUTS)
        _check_names("also", self.also, PARTS)
        if self.softmax == "log-sqrt2" and "pv" not in self.products:
            raise UserError("softmax log-sqrt2 rounds the weights of an integer p v; add pv to the products")
        if self.products and self.activations == "float":
            raise UserError("integer products of attention need quantised activations, not float ones")
        if not self.symmetric and self.activations != "static":
            raise UserError(f"asymmetric activations go with static scales, not with {self.activations} ones")
        if self.estimator != "absmax" and not self.calibrated:
            raise UserError(
                f"estimator {self.estimator} goes with calibrated scales (static, group), not with {self.activations}"
            )
        if not 0 < self.percentile <= 100:
            raise UserError(f"percentile must be above 0 and at most 100, got {self.percentile}")

    @classmethod
    def named(cls, name: str, **options: Any) -> Scheme | None:
        """`w8a8`, `w6a6`, `w4a4` (any w2..8 a2..8): the paper's setting; `w8` .. `w2`: weights only; `float` -> None.

        Raises UserError for other names."""
        if name == "float":
            return None
        match = re.fullmatch(r"w([2-8])(?:a([2-8]))?", name.lower())
        if match is None:
            raise UserError(f"unknown scheme {name!r}; try w8a8, w6a6, w4a4 (any w2..8 a2..8), w8, w4 or float")
        if match[2] is None:
            options = {"activations": "float", **options}
        return cls(weight_bits=int(match[1]), activation_bits=int(match[2] or 8), **options)

    @property
    def name(self) -> str:
        """`w8a8` and the like; `w8` where activations stay in float."""
        return f"w{self.weight_bits}" + ("" if self.activations == "float" else f"a{self.activation_bits}")

    @property
    def calibrated(self) -> bool:
        """Whether scales must be calibrated before anything runs."""
        return self.activations in ("static", "group")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What may need a scale under this scheme: the sites, and the inputs of integer products of attention."""
        return SITES + tuple(each for product in self.products for each in PRODUCT_INPUTS[product])

    def of_part(self, part: str) -> Scheme | None:
        """How a part beside the blocks is quantised: to the nearest, without rules, with one scale for all tokens where the
        blocks have one a group; None where it stays in float."""
        if part not in self.also:
            return None
        activations: Activations = "static" if self.activations == "group" else self.activations
        plain: dict[str, Any] = {"method": "rtn", "rules": (), "products": (), "softmax": "uniform", "also": ()}
        return dataclasses.replace(self, activations=activations, **plain)

    def at(self, site: str, block: int = 0) -> SiteBits:
        """How one site of one block is quantised."""
        rule = next((rule for rule in self.rules if rule.matches(site, block)), Rule())
        return SiteBits(
            rule.weight_bits or self.weight_bits,
            rule.activation_bits or self.activation_bits,
            rule.quantized and site not in self.float_sites,
        )

    @property
    def running(self) -> Scheme:
        """What a program of the quantised encoder depends on: the same scheme without how its integers and scales were found, so that
        encoders that run alike share one compilation."""
        rules = tuple(dataclasses.replace(rule, weight_bits=None) for rule in self.rules)
        return dataclasses.replace(
            self, weight_bits=8, method="rtn", symmetric=True, estimator="absmax", percentile=99.99, rules=rules
        )

    def segments(self, first: int, last: int) -> list[tuple[int, int, Scheme]]:
        """Ranges of blocks that are quantised alike, each with the scheme that says the same without block numbers."""
        if not self.rules:
            return [(first, last, self)]
        cuts: list[tuple[int, int, Scheme]] = []
        for block in range(first, last):
            bits = {site: self.at(site, block) for site in SITES}
            own = dataclasses.replace(
                self,
                float_sites=tuple(site for site in SITES if not bits[site].quantized),
                rules=tuple(Rule((site,), None, *bits[site][:2]) for site in SITES),
            )
            if cuts and cuts[-1][2] == own:
                cuts[-1] = (cuts[-1][0], block + 1, own)
            else:
                cuts.append((block, block + 1, own))
        return cuts

    def check_rules(self, num_blocks: int) -> None:
        """Raises UserError for a rule that decides nothing: other sites, other blocks, or an earlier rule matched first."""
        cells = [(site, block) for site in SITES for block in range(num_blocks)]
        for number, rule in enumerate(self.rules):
            before = self.rules[:number]
            if not any(rule.matches(*cell) and not any(other.matches(*cell) for other in before) for cell in cells):
                raise UserError(
                    f"rule {number + 1} ({rule}) matches nothing: the encoder has blocks 0..{num_blocks - 1} and sites "
                    f"{', '.join(SITES)}, and the first rule that matches decides"
                )

    def keep_in_float(self, cells: Iterable[tuple[str, int]]) -> Scheme:
        """The same scheme with some (site, block) cells, the most sensitive ones say, left in float."""
        kept = tuple(Rule((site,), (int(block),), quantized=False) for site, block in cells)
        return dataclasses.replace(self, rules=kept + self.rules)

    def nearest(self) -> Scheme:
        """The same bits, sharing of scales and estimator, rounded to the nearest and no more: what the search of registers
        simulates."""
        plain = Scheme(self.weight_bits, self.activation_bits, self.activations, self.weights, self.float_sites)
        return dataclasses.replace(plain, estimator=self.estimator, percentile=self.percentile)

    @property
    def plain(self) -> Scheme:
        """The same bits and sharing of weights' scales, rounded to the nearest under static absmax scales, whatever else it says."""
        return Scheme(self.weight_bits, self.activation_bits, "static", self.weights)

    @property
    def needs_images(self) -> bool:
        """Whether an encoder cannot be quantised without calibration pictures (or a calibration)."""
        return self.calibrated or self.method != "rtn"

    def to_json(self) -> dict[str, Any]:
        """The scheme as plain JSON values; `shared_over`, which belongs to a program that runs, is left out."""
        tree = dataclasses.asdict(self)
        del tree["shared_over"]
        return tree

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Scheme:
        """The inverse of `to_json`."""
        rules = tuple(Rule(**_with_tuples(rule)) for rule in tree.get("rules", ()))
        return cls(**{**_with_tuples(tree), "rules": rules})


def _with_tuples(tree: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where a scheme has tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()}


def _check_bits(name: str, bits: int) -> None:
    if not 2 <= bits <= 8:
        raise UserError(f"{name} must be 2..8 (int8 containers), got {bits}")


def _check_names(name: str, given: tuple[str, ...], known: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(f"{name} has {', '.join(unknown)}; known are {', '.join(known)}")
