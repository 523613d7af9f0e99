"""Folders in compressed-tensors' int8 layout, read: the integers and scales as they are stored, not rounded anew.

The floats that the integers stand for go through the family's table as any checkpoint does; their scales go through the same table, and
give the integers back.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Required

import numpy as np
from flax.traverse_util import flatten_dict
from pydantic import Field
from regcache_jax.converters.compressed import FORMAT, METHOD, TOWERS
from regcache_jax.converters.engine import Rule, StoredTensor, assemble
from regcache_jax.converters.readers import Tensors
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.names import SCALES, from_names, to_names
from regcache_jax.core.scheme import SITE_LAYERS, SITES, Scheme
from regcache_jax.core.scheme import Rule as SchemeRule
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.bounded import parse_json

_WEIGHT, _SCALE, _INPUT = ".weight", ".weight_scale", ".input_scale"


class Compressed(NamedTuple):
    """A checkpoint's tensors as floats, and by the names of the quantised weights the scale of each row and the step of the input (1 where
    it is measured as it passes)."""

    floats: dict[str, StoredTensor]
    scales: dict[str, StoredTensor]
    steps: dict[str, StoredTensor]
    activations: Literal["static", "token"]


def split(tensors: Tensors, config: Mapping[str, Any], where: str) -> Compressed:
    """Takes scales and integers apart. Raises UserError that names what in a `quantization_config` is not W8A8 of the kinds that are
    read."""
    activations = _activations(config, where)
    floats, scales, steps = {}, {}, {}
    for name, stored in tensors.items():
        if name.endswith((_SCALE, _INPUT)):
            continue
        base = name.removesuffix(_WEIGHT)
        scale = tensors.get(f"{base}{_SCALE}") if name.endswith(_WEIGHT) else None
        if scale is None:
            floats[name] = stored
            continue
        step = tensors.get(f"{base}{_INPUT}")
        if stored.dtype != np.int8 or len(stored.shape) != 2 or scale.shape not in ((stored.shape[0], 1), (1,), (1, 1)):
            shapes = f"{stored.dtype} {list(stored.shape)} with {list(scale.shape)}"
            raise UserError(f"{where}: {name} should be int8 [out, in] with a scale [out, 1], got {shapes}")
        if (step is None) != (activations == "token"):
            raise UserError(
                f"{where}: {base} has {'no' if step is None else 'an'} input_scale; config.json says {activations} activations"
            )
        floats[name] = _derived(stored, functools.partial(_dequantised, stored, scale))
        scales[name] = _derived(stored, functools.partial(_spread, scale, stored.shape))
        steps[name] = _derived(stored, functools.partial(_spread, step, stored.shape))
    return Compressed(floats, scales, steps, activations)


def _derived(stored: StoredTensor, read: Any) -> StoredTensor:
    return StoredTensor(stored.shape, np.dtype(np.float32), stored.file, read)


def _dequantised(stored: StoredTensor, scale: StoredTensor) -> np.ndarray:
    return stored.read().astype(np.float32) * _spread(scale, stored.shape)


def _spread(scale: StoredTensor | None, shape: tuple[int, ...]) -> np.ndarray:
    if scale is None:
        return np.ones(shape, np.float32)
    return np.broadcast_to(scale.read().astype(np.float32).reshape(-1, 1), shape)


class _Numbers(TypedDict, total=False):
    """How weights or inputs are rounded, of what is looked at."""

    num_bits: int | None
    type: str | None
    symmetric: bool | None
    strategy: str | None
    dynamic: bool | str | None


class _Group(TypedDict, total=False):
    weights: Required[_Numbers]
    input_activations: _Numbers | None


class Quantized(TypedDict, total=False):
    """What stands under `quantization_config`, of what is looked at."""

    quant_method: str
    format: str
    config_groups: Required[Annotated[dict[str, _Group], Field(min_length=1, max_length=1)]]


def _activations(config: Mapping[str, Any], where: str) -> Literal["static", "token"]:
    """How inputs are rounded. Raises UserError for what is no int8 W8A8."""
    method, format = config.get("quant_method"), config.get("format")
    if method != METHOD or format != FORMAT:
        raise UserError(
            f"{where}: config.json says that its weights are quantised ({shown(f'{method} {format}', 80)}); {METHOD} {FORMAT} is "
            "read, else convert the float checkpoint they were made from"
        )
    checked = parse_json(json.dumps(config), Quantized, f"{where}: quantization_config of config.json")
    (group,) = checked["config_groups"].values()
    weights, inputs = group["weights"], group.get("input_activations")
    faults = [f"weights {name} {weights.get(name)!r}" for name, right in _INT8 if weights.get(name) not in right]
    faults += [f"weights strategy {weights.get('strategy')!r}"] * (weights.get("strategy") not in ("channel", "tensor"))
    kind = None
    if inputs is not None:
        faults += [
            f"input_activations {name} {inputs.get(name)!r}" for name, right in _INT8 if inputs.get(name) not in right
        ]
        kind = (inputs.get("strategy"), bool(inputs.get("dynamic")))
    if kind not in _KINDS:
        faults.append(
            f"input_activations {inputs and inputs.get('strategy')!r}, dynamic {inputs and inputs.get('dynamic')!r}"
        )
    if faults:
        raise UserError(
            f"{where}: config.json has {'; '.join(faults)}; symmetric int8 with static per-tensor or dynamic per-token inputs is read"
        )
    return _KINDS[kind]


_INT8: tuple[tuple[str, tuple[Any, ...]], ...] = (("num_bits", (8,)), ("type", ("int",)), ("symmetric", (True, None)))
_KINDS: dict[tuple[str | None, bool] | None, Literal["static", "token"]] = {
    ("tensor", False): "static",
    ("token", True): "token",
}


def with_integers(encoder: Encoder, found: Compressed, rules: Iterable[Rule], where: str) -> Encoder:
    """An encoder of the floats, with the integers and scales they were made from. Raises UserError where layers that share an input are not
    quantised alike, and where only some of a text tower is."""
    names = {name: np.asarray(leaf) for name, leaf in to_names(encoder.params).items()}
    paths = {
        f"{tower}/blocks/{group}/{name}": (tower, site)
        for tower in TOWERS
        for site in SITES
        for group, name in SITE_LAYERS[site]
        if f"{tower}/blocks/{group}/{name}/kernel" in names
    }
    shapes = {f"{path}/kernel": names[f"{path}/kernel"].shape for path in paths}
    zeros = {
        name: _derived(stored, functools.partial(np.zeros, stored.shape, np.float32))
        for name, stored in found.floats.items()
    }

    def in_our_layout(theirs: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
        return flatten_dict(assemble({**zeros, **theirs}, rules, shapes, ignored=("*",), what=where), sep="/")

    scales, steps = in_our_layout(found.scales), in_our_layout(found.steps)
    cells: dict[tuple[str, str], np.ndarray] = {}
    for path, place in paths.items():
        scale, kernel = scales[f"{path}/kernel"], names[f"{path}/kernel"]
        inputs = 2 if path.endswith("attention/out") else 1
        first = (slice(None), *(slice(0, 1),) * inputs)
        integers = np.all(scale.reshape(len(scale), -1) > 0, axis=1)
        if not np.array_equal(cells.setdefault(place, integers), integers):
            raise UserError(
                f"{where}: of the layers that read one input ({place[1]} of the {place[0]} tower) only some are quantised"
            )
        if not integers.any():
            continue
        rows = scale[first].copy()
        rows[~integers] = 1.0
        del names[f"{path}/kernel"]
        values = np.round(kernel / rows)
        values[~integers] = 0
        names[f"{path}/kernel/values"], names[f"{path}/kernel/scale"] = values.astype(np.int8), rows
        if not integers.all():
            names[f"{path}/float_kernel"] = kernel[~integers]
        if found.activations == "static":
            _put_step(names, place, steps[f"{path}/kernel"].reshape(len(scale), -1)[:, 0], integers, where)
    return encoder.replace(params=from_names(names), scheme=_scheme(cells, found.activations, where))


def _put_step(
    names: dict[str, np.ndarray], place: tuple[str, str], step: np.ndarray, integers: np.ndarray, where: str
) -> None:
    name = f"{place[0]}/blocks/{SCALES}/{place[1]}"
    step = np.where(integers, step, 1.0).astype(np.float32)
    if not np.array_equal(names.setdefault(name, step), step):
        raise UserError(
            f"{where}: layers that read one input ({place[1]} of the {place[0]} tower) have different scales for it"
        )


def _scheme(cells: Mapping[tuple[str, str], np.ndarray], activations: Literal["static", "token"], where: str) -> Scheme:
    """What the encoder is quantised by: whole sites in float, rules for single blocks."""
    image = {site: integers for (tower, site), integers in cells.items() if tower == "image"}
    text = [integers for (tower, _), integers in cells.items() if tower == "text"]
    if any(each.any() for each in text) and not all(each.all() for each in text):
        raise UserError(f"{where}: of the text tower's layers only some are quantised; all or none are read")
    rules = tuple(
        SchemeRule((site,), tuple(np.nonzero(~integers)[0].tolist()), quantized=False)
        for site, integers in image.items()
        if integers.any() and not integers.all()
    )
    return Scheme(
        8, 8, activations=activations, rules=rules,
        float_sites=tuple(site for site, integers in image.items() if not integers.any()),
        also=("text",) if text and text[0].any() else (),
    )  # fmt: skip
