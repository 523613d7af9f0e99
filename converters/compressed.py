"""compressed-tensors' int8 layout (`int-quantized`, W8A8) of our integers: `weight` int8 `[out, in]`, `weight_scale` `[out, 1]` and, where
scales are calibrated, `input_scale` `[1]` beside every quantised Linear; and the way back.

Their int8 arithmetic is ours but for two things. Static: a value beyond the scale is cut at -128 there and at -127 here. Per token: they
divide a token's largest magnitude by 127.5, we by 127.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict
from regcache_jax.converters.engine import Rule, disassemble

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.core.names import OFFSETS, SCALES, to_names
from regcache_jax.core.scheme import SITE_LAYERS, SITES, Scheme
from regcache_jax.encoders.encoder import Encoder

METHOD, FORMAT = "compressed-tensors", "int-quantized"
TOWERS = ("image", "text")
Arrays = dict[str, np.ndarray]


class Layer(NamedTuple):
    """A quantised layer of a stack of blocks: where it stands, its site, and in which blocks it is integers."""

    tower: str
    path: str
    site: str
    integers: np.ndarray

    @property
    def kernel(self) -> str:
        """The name of its kernel in a float encoder."""
        return f"{self.path}/kernel"


def refuse_inexpressible(encoder: Encoder) -> None:
    """Raises UserError that names all that transformers' blocks and compressed-tensors have no words for."""
    faults: list[str] = []
    if (plan := encoder.schedule) is not None:
        faults += ["registers (no block there has cached rows)"] if plan.start < plan.stop else []
        faults += [f"the deletion of {counted(plan.delete_count, 'token')}"] if plan.delete_count else []
    names = to_names(encoder.params)
    if "image/rotation" in names:
        faults.append("a rotated residual stream")
    for tower in TOWERS:
        prefix = f"{tower}/blocks"
        offsets = [site for site in SITES if f"{prefix}/{OFFSETS}/{site}" in names]
        faults += [f"zero points ({', '.join(offsets)} of the {tower} tower)"] if offsets else []
        faults += ["a scale of its own for negative values"] if f"{prefix}/{SCALES}/fc2_negative" in names else []
        faults += (
            [
                "a change of units in front of fc2 (SmoothQuant's and AWQ's, behind an activation function that is no gate; the method "
                "smoothquant_norms leaves none)"
            ]
            if f"{prefix}/fc2_multiplier" in names
            else []
        )
    faults += [] if encoder.scheme is None else _faults_of(encoder.scheme, encoder.spec.image.blocks.num_blocks)
    if faults:
        raise UserError(f"{encoder.spec.name} cannot be written for transformers: it has {'; '.join(faults)}")


def _faults_of(scheme: Scheme, blocks: int) -> list[str]:
    cells = [scheme.at(site, block) for site in SITES for block in range(blocks)]
    bits = {(cell.weight_bits, cell.activation_bits) for cell in cells if cell.quantized}
    faults = [f"w{weights}a{inputs} sites (w8a8 is written)" for weights, inputs in sorted(bits - {(8, 8)})]
    if scheme.activations not in ("static", "token"):
        faults.append(f"{scheme.activations} activation scales (static and token are written)")
    faults += [f"integer products of attention ({', '.join(scheme.products)})"] if scheme.products else []
    return [*faults, *(["an integer pooling head (its attention is no Linear there)"] if "head" in scheme.also else [])]


def layers_of(encoder: Encoder) -> Iterator[Layer]:
    """The quantised layers of both towers' blocks."""
    if (scheme := encoder.scheme) is None:
        return
    names = to_names(encoder.params)
    for tower in TOWERS:
        own = scheme if tower == "image" else scheme.of_part("text")
        for site in SITES if own is not None else ():
            assert own is not None
            for group, name in SITE_LAYERS[site]:
                path = f"{tower}/blocks/{group}/{name}"
                if (values := names.get(f"{path}/kernel/values")) is not None:
                    integers = np.array([own.at(site, block).quantized for block in range(len(values))])
                    yield Layer(tower, path, site, integers)


def floats(encoder: Encoder) -> Arrays:
    """The parameters of a float encoder by name: kernels are what the integers stand for."""
    names = {name: np.asarray(leaf) for name, leaf in to_names(encoder.params).items()}
    for layer in layers_of(encoder):
        kernel = names.pop(f"{layer.kernel}/values").astype(np.float32) * names.pop(f"{layer.kernel}/scale")
        if (left := names.pop(f"{layer.path}/float_kernel", None)) is not None:
            kernel[~layer.integers] = left
        names[layer.kernel] = kernel
        names.pop(f"{layer.tower}/blocks/{SCALES}/{layer.site}", None)
    return names


def tensors_of(encoder: Encoder, rules: Iterable[Rule]) -> Arrays:
    """What model.safetensors holds: float tensors, and of quantised layers integers and scales."""
    rules, names = tuple(rules), {name: np.asarray(leaf) for name, leaf in to_names(encoder.params).items()}
    tensors = _named(floats(encoder), rules)
    layers = list(layers_of(encoder))
    weights, inputs = {}, {}
    for layer in layers:
        values, scale = names[f"{layer.kernel}/values"], names[f"{layer.kernel}/scale"].copy()
        scale[~layer.integers] = np.nan
        weights[layer.kernel] = np.broadcast_to(scale, values.shape)
        step = names.get(f"{layer.tower}/blocks/{SCALES}/{layer.site}")
        if step is not None:
            inputs[layer.kernel] = np.broadcast_to(step.reshape(-1, *(1,) * (values.ndim - 1)), values.shape)
    steps = {name: array[:1, 0] for name, array in _named(inputs, rules).items()}
    for name, array in _named(weights, rules).items():
        if np.isnan(scale := array[:, :1]).any():
            continue  # this block's stays in float
        tensors[name] = np.round(tensors[name] / scale).astype(np.int8)
        tensors[f"{name}_scale"] = np.ascontiguousarray(scale, np.float32)
        if name in steps:
            tensors[f"{name.removesuffix('weight')}input_scale"] = np.ascontiguousarray(steps[name], np.float32)
    return tensors


def _named(names: Mapping[str, np.ndarray], rules: tuple[Rule, ...]) -> Arrays:
    return disassemble(unflatten_dict(dict(names), sep="/"), rules)


def quantization_config(scheme: Scheme, tensors: Arrays, embeddings: Iterable[str]) -> dict[str, Any]:
    """The part of config.json that says how to read the tensors. `embeddings`: names of matrices that belong to no Linear."""
    known = set(embeddings)
    linear = {
        name.removesuffix(".weight") for name, array in tensors.items() if name.endswith(".weight") and array.ndim == 2
    }
    ignored = sorted(name for name in linear if f"{name}.weight_scale" not in tensors and f"{name}.weight" not in known)
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    dynamic = scheme.activations == "token"
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**int8, "strategy": "channel", "dynamic": False},
                "input_activations": {**int8, "strategy": "token" if dynamic else "tensor", "dynamic": dynamic},
                "output_activations": None,
                "format": FORMAT,
            }
        },
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
