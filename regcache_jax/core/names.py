"""The name of every parameter, on disk and in Flax's trees: `image/blocks/mlp/fc1/kernel` and the like.

A leaf is named by the fields that lead to it. Two things differ, as folders of version 0.1.0 have it: grids are `input_scale/SITE` and
`input_offset/SITE` beside the layers (`input_scale/fc2_negative` for the negative half), and an integer kernel is `values` and `scale`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from regcache_jax.core.sites import Dense, Grid, Grids, HashedText, Parameters, QuantizedTensor, TextTower

SCALES, OFFSETS, NEGATIVE, LOW = "input_scale", "input_offset", "fc2_negative", "softmax_low"


def to_names(node: Any) -> dict[str, Any]:
    """Every leaf that is there, by its name below `node`."""
    return flatten_dict(to_tree(node), sep="/")


def to_tree(node: Any) -> Any:
    """The same as nested dicts, as Flax's variables are."""
    if isinstance(node, QuantizedTensor):
        return {"values": node.values, "scale": node.scale}
    if not dataclasses.is_dataclass(node):
        return node
    tree: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        child = getattr(node, field.name)
        if isinstance(child, Grids):
            tree |= _grids_to_tree(child)
        elif child is not None and field.metadata.get("pytree_node", True):
            tree[field.name] = to_tree(child)
    return tree


def from_names(flat: Mapping[str, Any]) -> Parameters:
    """The inverse of `to_names`. Raises KeyError with the names that no parameter has, and those without which there is none."""
    return from_tree(unflatten_dict(dict(flat), sep="/"))


def from_tree(tree: Mapping[str, Any]) -> Parameters:
    """The inverse of `to_tree`; raises as `from_names` does."""
    return part_from_tree(Parameters, tree)


def part_from_tree(kind: type, tree: Mapping[str, Any], num_inputs: int = 1) -> Any:
    """One of the structs from its part of a tree."""
    tree = dict(tree)
    found: dict[str, Any] = {"num_inputs": num_inputs} if kind is Dense else {}
    missing = []
    for field in dataclasses.fields(kind):
        below = field.metadata.get("part")
        if below is Grids:
            found[field.name] = _grids_from_tree(tree.pop(SCALES, {}), tree.pop(OFFSETS, {}))
        elif field.name in tree:
            child = tree.pop(field.name)
            if below is not None:
                below = HashedText if below is TextTower and "embedding" in child else below
                child = part_from_tree(below, child, field.metadata["num_inputs"])
            elif isinstance(child, Mapping):
                child = QuantizedTensor(**child)
            found[field.name] = child
        elif field.default is dataclasses.MISSING and field.name not in found:
            missing.append(field.name)
    if tree or missing:
        said = [f"unknown {', '.join(sorted(map(str, tree)))}"] * bool(tree) + [f"missing {', '.join(missing)}"] * bool(
            missing
        )
        raise KeyError(f"{kind.__name__}: {'; '.join(said)}")
    return kind(**found)


def _grids_to_tree(grids: Grids) -> dict[str, Any]:
    sites = {field.name: getattr(grids, field.name) for field in dataclasses.fields(grids)}
    low = sites.pop(LOW)
    scales = {site: grid.scale for site, grid in sites.items() if grid is not None and grid.scale is not None}
    offsets = {site: grid.offset for site, grid in sites.items() if grid is not None and grid.offset is not None}
    if grids.fc2 is not None and grids.fc2.negative is not None:
        scales[NEGATIVE] = grids.fc2.negative
    if low is not None:
        scales[LOW] = low
    return {name: tree for name, tree in ((SCALES, scales), (OFFSETS, offsets)) if tree}


def _grids_from_tree(scales: Mapping[str, Any], offsets: Mapping[str, Any]) -> Grids:
    scales = dict(scales)
    negative, low = scales.pop(NEGATIVE, None), scales.pop(LOW, None)
    grids = {site: Grid(scales.get(site), offsets.get(site)) for site in {**scales, **offsets}}
    if negative is not None:
        grids["fc2"] = grids.get("fc2", Grid()).replace(negative=negative)
    try:
        return Grids(**grids, softmax_low=low)
    except TypeError:
        known = {field.name for field in dataclasses.fields(Grids)}
        raise KeyError(f"no site is called {', '.join(sorted(set(grids) - known))}") from None
