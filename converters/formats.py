"""`Format`: how one library writes one family: its table of names, how to recognise it, and how its spec is found."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from regcache_jax.converters.engine import Rule, StoredTensor

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.spec import Activation, EncoderSpec, Filter, Preprocessing, Resize
from regcache_jax.encoders import catalog


@dataclasses.dataclass(frozen=True)
class Given:
    """What a checkpoint tells of itself: its tensors, the JSON files beside them, the ids of its tokenizer's `bos_token`, `eos_token` and
    `pad_token`, and its row of the catalog if it has one."""

    name: str
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    marks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    row: catalog.Row | None = None

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """Shape of one of their tensors. Raises UserError if it is missing, has another number of axes, or is empty."""
        if name not in self.tensors:
            raise UserError(f"{self.name} lacks {name}, without which its sizes are not known")
        shape = self.tensors[name].shape
        if len(shape) != axes or 0 in shape:
            raise UserError(f"{self.name}: {name} is {list(shape)}, expected {axes} axes, none of them empty")
        return shape

    def has(self, pattern: str) -> bool:
        """Whether any tensor's name fits the pattern."""
        return any(fnmatch.fnmatchcase(name, pattern) for name in self.tensors)

    def count(self, name: str) -> int:
        """How many numbered blocks there are; `*` stands for the number."""
        expression = re.compile(re.escape(name).replace(r"\*", r"([0-9]{1,6})"))
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

    `marks`: patterns of names that all occur in it and tell it from the others, `unless`: of names that do not. `model_types`: what a
    Hugging Face `config.json` calls it; `classes`: how its classes in transformers begin, as a regular expression. `prefixes`: beginnings
    of names and what to read in their place. `ignored`: patterns of names that carry nothing we use. `heads`: patterns of
    what was trained on top of the encoder, which is left out and said.
    `torchscript`: found in TorchScript archives only. `repair`: puts right what early versions of the library wrote otherwise."""

    name: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    spec: Callable[[Given], EncoderSpec]
    model_types: tuple[str, ...] = ()
    classes: str | None = None
    prefixes: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("classifier.*",)
    unless: tuple[str, ...] = ()
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

        def occurs(pattern: str) -> bool:
            return any(fnmatch.fnmatchcase(name, pattern) for name in names)

        return all(map(occurs, self.marks)) and not any(map(occurs, self.unless))


ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "relu": "relu",
}
PROCESSOR = "preprocessor_config.json"
_FILTERS: dict[Any, Filter] = {
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos": "lanczos",
}  # PIL's numbers


def filter_of(told: Any) -> Filter | None:
    """A filter's name or PIL's number in our words; None for another."""
    return _FILTERS.get(told) if isinstance(told, str | int) else None


# Heads are 64 wide but for these widths, which all have 16 of them.
_SIXTEEN_HEADS = (1152, 1280, 1408, 1536, 1664)


def num_heads(width: int) -> int:
    """The heads of a CLIP or SigLIP tower, which its tensors do not show."""
    return 16 if width in _SIXTEEN_HEADS else max(1, width // 64)


def section(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """A part of a configuration; empty where it is not there or null. Raises UserError for what is no object."""
    part = config.get(key)
    if part is not None and not isinstance(part, Mapping):
        raise UserError(f"{where}: {key} should be an object, got {shown(repr(part))}")
    return part or {}


def setting(config: Mapping[str, Any], key: str, default: Any, where: str = "config.json") -> Any:
    """A value of a configuration, of the default's type. Raises UserError for another type, a size below one, and a number that is
    not finite or not positive."""
    value = config.get(key, default)
    if isinstance(default, float):
        right = type(value) in (int, float) and math.isfinite(value) and value > 0
    else:
        right = isinstance(value, type(default))
    if not right or (type(default) is int and (isinstance(value, bool) or value < 1)):
        wanted = "true or false" if isinstance(default, bool) else f"like {default!r}"
        raise UserError(f"{where}: {key} should be {wanted}, got {value!r}")
    return value


def activation(config: Mapping[str, Any], default: str) -> Activation:
    """`hidden_act` in our words. Raises UserError for a function the blocks do not have."""
    name = setting(config, "hidden_act", default)
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: hidden_act {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def needs_config(given: Given, family: str) -> None:
    """Raises UserError where there is neither a configuration nor a row of the catalog: tensors show neither activation nor heads."""
    if not given.config:
        raise UserError(
            f"{given.name} is a {family} in Hugging Face's names without config.json, which alone says its activation and its heads; put "
            "the config.json it was trained with beside it, or name its row of the catalog with --name"
        )


def preprocessing(config: Mapping[str, Any], default: Preprocessing) -> Preprocessing:
    """A Hugging Face `preprocessor_config.json` in our words; what it leaves open is as in `default`.

    Raises UserError for what our preprocessing cannot do: sides that differ, a crop that would be padded, no resizing, other units."""
    if not config:
        return default
    config = section(config, "image_processor", PROCESSOR) or config
    size = config.get("size", default.resize_size)
    resize: Resize = "shortest"
    if isinstance(size, Mapping):
        resize = "shortest" if "shortest_edge" in size else "squash"
        size = size["shortest_edge"] if "shortest_edge" in size else _one_side(size, "size")
    crop = config.get("crop_size", default.image_size)
    crop = _one_side(crop, "crop_size") if isinstance(crop, Mapping) else crop
    cropped = config.get("do_center_crop", resize == "shortest")
    filter = filter_of(config.get("resample", default.filter))
    numbers = [size, crop if cropped else size]
    if filter is None or not all(type(number) is int and number > 0 for number in numbers):
        raise UserError(
            f"{PROCESSOR}: size and crop_size should be whole numbers and resample 1 (lanczos), 2 (bilinear) or 3 (bicubic); "
            f"got {config.get('size')}, {config.get('crop_size')}, {config.get('resample')}"
        )
    if numbers[1] > size:
        raise UserError(
            f"{PROCESSOR}: crop_size {crop} is larger than size {size}; transformers would pad with black, which is not supported"
        )
    if resize == "shortest" and not cropped:
        raise UserError(
            f"{PROCESSOR}: shortest_edge {size} without do_center_crop leaves pictures of other shapes, which is not supported"
        )
    _refuse_other_steps(config)
    mean, std = (
        three_numbers(config.get(key, ours), f"{PROCESSOR}: {key}")
        for key, ours in (
            ("image_mean", default.mean),
            ("image_std", default.std),
        )
    )
    if not config.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if not all(part > 0 for part in std):
        raise UserError(f"{PROCESSOR}: image_std should be above zero, got {list(std)}")
    return Preprocessing(numbers[1], resize, filter, size, mean, std)


def _one_side(size: Mapping[str, Any], what: str) -> Any:
    """The side of a square. Raises UserError for a rectangle."""
    sides = [size.get("height"), size.get("width", size.get("height"))]
    if sides[0] != sides[1]:
        raise UserError(
            f"{PROCESSOR}: {what} is {sides[0]} x {sides[1]}; encoders here take square pictures, other shapes are not supported"
        )
    return sides[0]


def _refuse_other_steps(config: Mapping[str, Any]) -> None:
    """Raises UserError for steps that are switched off or differ, and that no field of `Preprocessing` holds."""
    for key in ("do_resize", "do_rescale"):
        if not config.get(key, True):
            raise UserError(
                f"{PROCESSOR}: {key} is false, which is not supported: pictures are resized and scaled to 0..1"
            )
    factor = config.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise UserError(f"{PROCESSOR}: rescale_factor is {factor!r}; only 1/255 is supported")


def three_numbers(value: Any, what: str) -> tuple[float, float, float]:
    """One number a colour. Raises UserError for anything else."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    if [type(number) in (int, float) and math.isfinite(number) for number in numbers] != [True] * 3:
        raise UserError(f"{what} should be three finite numbers, got {value!r}")
    red, green, blue = map(float, value)
    return red, green, blue
