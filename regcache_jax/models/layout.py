"""Which leaves a model folder may hold: exactly those that the types, the spec and the scheme say, with their types and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regcache_jax.core.names import LOW, NEGATIVE, OFFSETS, SCALES, to_names
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Dense, Head, Parameters, TextTower
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders.parameters import parameter_shapes

Shape = tuple[int, ...]


class Expected(NamedTuple):
    """A leaf: its type (`float`: any floating type), the shapes that it may have, and whether a folder must hold it."""

    kind: str
    shapes: tuple[Shape, ...]
    required: bool = True

    def fault(self, leaf: jax.ShapeDtypeStruct) -> str | None:
        """What is wrong with a leaf that stands here."""
        if tuple(leaf.shape) not in self.shapes:
            return f"is {list(leaf.shape)}, expected {' or '.join(str(list(shape)) for shape in self.shapes)}"
        fits = jnp.issubdtype(leaf.dtype, jnp.floating) if self.kind == "float" else str(leaf.dtype) == self.kind
        return None if fits else f"has type {leaf.dtype}, expected {self.kind}"


def expected_leaves(spec: EncoderSpec, scheme: Scheme | None) -> dict[str, Expected]:
    """Every leaf that an encoder's folder may hold, by name. Raises TypeError, ValueError or ArithmeticError for impossible sizes."""
    shapes = parameter_shapes(spec)
    leaves = {name: Expected("float", (leaf.shape,)) for name, leaf in to_names(shapes).items()}
    if scheme is None:
        return leaves
    width = spec.image.blocks.width
    leaves["image/rotation"] = Expected("float", ((width, width),), required=False)
    leaves |= _biases_of_methods(shapes, leaves)
    _quantise(leaves, "image/blocks", shapes.image.blocks, scheme)
    head, text = scheme.of_part("head"), scheme.of_part("text")
    if head is not None and shapes.image.head is not None:
        _quantise(leaves, "image/head", shapes.image.head, head)
    if text is not None and isinstance(shapes.text, TextTower):
        _quantise(leaves, "text/blocks", shapes.text.blocks, text)
    return leaves


def faults(leaves: Mapping[str, jax.ShapeDtypeStruct], spec: EncoderSpec, scheme: Scheme | None) -> list[str]:
    """What is missing, unknown, or of another type or shape; raises as `expected_leaves` does."""
    expected = expected_leaves(spec, scheme)
    found = [f"{name} is missing" for name, leaf in expected.items() if leaf.required and name not in leaves]
    for name, leaf in leaves.items():
        fault = expected[name].fault(leaf) if name in expected else "is not known"
        found += [] if fault is None else [f"{name} {fault}"]
    return found


def _biases_of_methods(shapes: Parameters, leaves: Mapping[str, Expected]) -> dict[str, Expected]:
    """The biases that methods and zero points leave in layers and norms of blocks that have none of their own."""
    parts: dict[str, Block | Head] = {"image/blocks": shapes.image.blocks}
    parts |= {} if shapes.image.head is None else {"image/head": shapes.image.head}
    parts |= {"text/blocks": shapes.text.blocks} if isinstance(shapes.text, TextTower) else {}
    found = {}
    for where, part in parts.items():
        stacked = int(isinstance(part, Block))
        for site in SITES:
            for name, layer in _layers(part, site):
                found[f"{where}/{name}/bias"] = (
                    layer.floats.shape[:stacked] + layer.floats.shape[stacked + layer.num_inputs :]
                )
        if isinstance(part, Block):
            found |= {f"{where}/{name}/bias": getattr(part, name).scale.shape for name in ("norm1", "norm2")}
    return {name: Expected("float", (shape,), required=False) for name, shape in found.items() if name not in leaves}


def _quantise(leaves: dict[str, Expected], where: str, blocks: Block | Head, scheme: Scheme) -> None:
    """What `quantize` makes of a stack (or, without an axis of blocks, of the pooling head), and what methods leave beside it."""
    stacked: Shape = (blocks.num_blocks,) if isinstance(blocks, Block) else ()
    rounded = []
    for site in SITES:
        chosen = np.array([scheme.at(site, block).quantized for block in range(stacked[0] if stacked else 1)])
        if not chosen.any():
            continue
        rounded.append(site)
        for name, layer in _layers(blocks, site):
            _round(leaves, f"{where}/{name}", layer, len(stacked), scheme.weights == "channel")
            if not chosen.all():
                left = (int((~chosen).sum()), *layer.floats.shape[1:])
                leaves[f"{where}/{name}/float_kernel"] = Expected("float", (left,))
    if scheme.activations == "float":
        return
    groups: Shape = (3,) if scheme.activations == "group" else ()
    for site in [*rounded, *(site for site in scheme.inputs if site not in SITES)] if scheme.calibrated else ():
        leaves[f"{where}/{SCALES}/{site}"] = Expected("float32", ((*stacked, *(groups if site in SITES else ())),))
    for site in rounded:
        (_, layer), *_ = _layers(blocks, site)
        channels = layer.floats.shape[: len(stacked) + layer.num_inputs]
        leaves[f"{where}/{OFFSETS}/{site}"] = Expected("float32", (stacked, channels), required=not scheme.symmetric)
    for name in (f"{SCALES}/{NEGATIVE}", f"{SCALES}/{LOW}"):
        leaves[f"{where}/{name}"] = Expected("float32", (stacked,), required=False)
    if isinstance(blocks, Block):
        hidden = blocks.mlp.fc2.floats.shape[:2]
        leaves[f"{where}/fc2_multiplier"] = Expected("float", (hidden,), required=False)


def _layers(blocks: Block | Head, site: str) -> Iterator[tuple[str, Dense]]:
    """The layers of a site that are quantised, by their name on disk. The head's query is not: it is the same for every picture."""
    for name, layer in blocks.layers(site).items():
        if not (isinstance(blocks, Head) and name == "query"):
            yield f"{'attention' if site in ('qkv', 'out') else 'mlp'}/{name}", layer


def _round(leaves: dict[str, Expected], name: str, layer: Dense, stacked: int, per_channel: bool) -> None:
    shape = layer.floats.shape
    inputs = range(stacked, stacked + layer.num_inputs)
    shared = inputs if per_channel else range(stacked, len(shape))
    del leaves[f"{name}/kernel"]
    leaves[f"{name}/kernel/values"] = Expected("int8", (shape,))
    scale = tuple(1 if axis in shared else size for axis, size in enumerate(shape))
    leaves[f"{name}/kernel/scale"] = Expected("float32", (scale,))
