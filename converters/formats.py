"""`Format`: how one library writes one family: its table of names, how to recognise it, and how its spec is found."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from regcache_jax.converters.engine import Rule, StoredTensor

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Activation, EncoderSpec, Filter, Preprocessing, Resize
from regcache_jax.encoders import catalog


@dataclasses.dataclass(frozen=True)
class Given:
    """What a checkpoint tells of itself: its tensors, the JSON files beside them, and its row of the catalog if it has one."""

    name: str
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    row: catalog.Row | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one of their tensors. Raises UserError if it is missing."""
        if name not in self.tensors:
            raise UserError(f"{self.name} lacks {name}, without which its sizes are not known")
        return self.tensors[name].shape

    def has(self, pattern: str) -> bool:
        """Whether any tensor's name fits the pattern."""
        return any(fnmatch.fnmatchcase(name, pattern) for name in self.tensors)

    def count(self, name: str) -> int:
        """How many numbered blocks there are; `*` stands for the number."""
        expression = re.compile(re.escape(name).replace(r"\*", r"(\d+)"))
        numbers = {int(match[1]) for match in map(expression.fullmatch, self.tensors) if match}
        return max(numbers) + 1 if numbers else 0

    def side(self, rows: int) -> int:
        """The side of a square table of positions. Raises UserError if it is not square."""
        side = math.isqrt(rows)
        if side * side != rows:
            raise UserError(f"{self.name} has {rows} positions, which is not a square of patches")
        return side


@dataclasses.dataclass(frozen=True)
class Format:
    """One layout of one family.

    `marks`: patterns of names that all occur in it and tell it from the others. `model_types`: what a Hugging Face
    `config.json` calls it. `prefixes`: beginnings of names and what to read in their place. `ignored`: patterns of names
    that carry nothing we use. `torchscript`: found in TorchScript archives only. `repair`: puts right what early
    versions of the library wrote otherwise."""

    name: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    spec: Callable[[Given], EncoderSpec]
    model_types: tuple[str, ...] = ()
    prefixes: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    torchscript: bool = False
    repair: Callable[[dict[str, StoredTensor]], dict[str, StoredTensor]] = lambda tensors: tensors

    def read_names(self, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """The tensors by the names the table uses."""
        return self.repair({self._read_name(name): tensor for name, tensor in tensors.items()})

    def _read_name(self, name: str) -> str:
        for start, instead in self.prefixes:
            if name.startswith(start):
                return instead + name.removeprefix(start)
        return name

    def fits(self, tensors: Mapping[str, StoredTensor]) -> bool:
        """Whether the names look like this layout's."""
        names = self.read_names(tensors)
        return all(any(fnmatch.fnmatchcase(name, mark) for name in names) for mark in self.marks)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
FILTERS: dict[Any, Filter] = {
    2: "bilinear",
    3: "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}  # PIL's numbers


# Heads are 64 wide but for these widths, which all have 16 of them.
_SIXTEEN_HEADS = (1152, 1280, 1408, 1536, 1664)


def num_heads(width: int) -> int:
    """The heads of a CLIP or SigLIP tower, which its tensors do not show."""
    return 16 if width in _SIXTEEN_HEADS else max(1, width // 64)


def setting(config: Mapping[str, Any], key: str, default: Any, where: str = "config.json") -> Any:
    """A value of a configuration, of the default's type. Raises UserError for another type or a size below one."""
    value = config.get(key, default)
    right = isinstance(value, int | float) if isinstance(default, float) else isinstance(value, type(default))
    if not right or (type(default) is int and (isinstance(value, bool) or value < 1)):
        raise UserError(f"{where}: {key} should be like {default!r}, got {value!r}")
    return value


def activation(config: Mapping[str, Any], default: str) -> Activation:
    """`hidden_act` in our words. Raises UserError for a function the blocks do not have."""
    name = setting(config, "hidden_act", default)
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: hidden_act {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def preprocessing(config: Mapping[str, Any], default: Preprocessing) -> Preprocessing:
    """A Hugging Face `preprocessor_config.json` in our words; what it leaves open is as in `default`."""
    if not config:
        return default
    config = config.get("image_processor", config)
    size = config.get("size", default.resize_size)
    resize: Resize = "shortest"
    if isinstance(size, Mapping):
        resize = "shortest" if "shortest_edge" in size else "squash"
        size = size.get("shortest_edge", size.get("height"))
    crop = config.get("crop_size", default.image_size)
    crop = crop.get("height") if isinstance(crop, Mapping) else crop
    cropped = config.get("do_center_crop", resize == "shortest")
    filter = FILTERS.get(config.get("resample", default.filter))
    numbers = [size, crop if cropped else size]
    if filter is None or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise UserError(
            "preprocessor_config.json: size and crop_size should be whole numbers and resample 2 (bilinear) or 3 (bicubic); "
            f"got {config.get('size')}, {config.get('crop_size')}, {config.get('resample')}"
        )
    mean, std = (
        three_numbers(config.get(key, ours), f"preprocessor_config.json: {key}")
        for key, ours in (
            ("image_mean", default.mean),
            ("image_std", default.std),
        )
    )
    if not all(std):
        raise UserError(f"preprocessor_config.json: image_std should not be zero, got {list(std)}")
    return Preprocessing(numbers[1], resize, filter, size, mean, std)


def three_numbers(value: Any, what: str) -> tuple[float, float, float]:
    """One number a colour. Raises UserError for anything else."""
    if not isinstance(value, list | tuple) or [type(number) in (int, float) for number in value] != [True] * 3:
        raise UserError(f"{what} should be three numbers, got {value!r}")
    red, green, blue = map(float, value)
    return red, green, blue
