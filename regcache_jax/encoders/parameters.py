"""Which parameters a spec has: one table of shapes and initialisers, read by the Flax modules, converters and catalog."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from regcache_jax.core.names import from_tree
from regcache_jax.core.sites import Parameters
from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec, TextSpec


class Leaf(NamedTuple):
    """Shape of one parameter and how it is drawn at initialisation."""

    shape: tuple[int, ...]
    initializer: Any


Table = dict[str, Any]
_ZEROS, _ONES = nn.initializers.zeros_init(), nn.initializers.ones_init()
_NORMAL = nn.initializers.normal(0.02)


def _norm(spec: BlockSpec, shape: tuple[int, ...], stacked: tuple[int, ...] = ()) -> Table:
    table: Table = {"scale": Leaf((*stacked, *shape), _ONES)}
    return {**table, "bias": Leaf((*stacked, *shape), _ZEROS)} if spec.norm == "layer" else table


def _dense(
    inputs: tuple[int, ...], outputs: tuple[int, ...], stacked: tuple[int, ...] = (), bias: bool = True
) -> Table:
    scale = nn.initializers.normal(math.prod(inputs) ** -0.5)
    table: Table = {"kernel": Leaf((*stacked, *inputs, *outputs), scale)}
    return {**table, "bias": Leaf((*stacked, *outputs), _ZEROS)} if bias else table


def _attention(spec: BlockSpec, stacked: tuple[int, ...] = ()) -> Table:
    width, heads = (spec.width,), (spec.num_heads, spec.head_dim)
    table: Table = {
        name: _dense(width, heads, stacked, bias=name[0] in spec.qkv_bias.removeprefix("none"))
        for name in ("query", "key", "value")
    }
    table["out"] = _dense(heads, width, stacked, spec.bias)
    if spec.qk_norm != "none":
        normed = heads if spec.qk_norm == "width" else heads[1:]
        table |= {name: _norm(spec, normed, stacked) for name in ("query_norm", "key_norm")}
    return {**table, "norm": _norm(spec, width, stacked)} if spec.inner_norms else table


def _mlp(spec: BlockSpec, stacked: tuple[int, ...] = ()) -> Table:
    width, hidden = (spec.width,), (spec.mlp_width,)
    table = {"fc1": _dense(width, hidden, stacked, spec.bias), "fc2": _dense(hidden, width, stacked, spec.bias)}
    if spec.gated_mlp:
        table["gate"] = _dense(width, hidden, stacked, spec.bias)
    return {**table, "norm": _norm(spec, hidden, stacked)} if spec.inner_norms else table


def block_table(spec: BlockSpec) -> Table:
    """Parameters of the stacked blocks."""
    stacked = (spec.num_blocks,)
    table: Table = {
        "norm1": _norm(spec, (spec.width,), stacked),
        "attention": _attention(spec, stacked),
        "norm2": _norm(spec, (spec.width,), stacked),
        "mlp": _mlp(spec, stacked),
    }
    if spec.layer_scale:
        scale = Leaf((*stacked, spec.width), nn.initializers.constant(1e-5))
        table |= {"layer_scale1": scale, "layer_scale2": scale}
    return table


def image_table(spec: ImageSpec) -> Table:
    """Parameters of an image tower."""
    blocks, width = spec.blocks, spec.blocks.width
    patch = (spec.patch_size, spec.patch_size, 3)
    table: Table = {
        "patch_embedding": _dense(patch, (width,), bias=spec.patch_bias),
        "blocks": block_table(blocks),
    }
    if spec.position_table:
        table["position_embedding"] = Leaf((int(spec.class_token) + spec.stored_grid**2, width), _NORMAL)
    if spec.final_norm:
        table["final_norm"] = _norm(blocks, (width,))
    if spec.class_token:
        table["class_token"] = Leaf((width,), _NORMAL)
    if spec.trained_registers:
        table["registers"] = Leaf((spec.trained_registers, width), _NORMAL)
    if spec.pre_norm:
        table["pre_norm"] = _norm(blocks, (width,))
    if spec.patch_norm:
        table["patch_norm"] = _norm(blocks, (width,))
    if spec.pooling == "map":
        table["head"] = {
            "probe": Leaf((width,), _NORMAL),
            "attention": _attention(spec.head),
            "norm": _norm(spec.head, (width,)),
            "mlp": _mlp(spec.head),
        }
    if spec.pooling == "probe":
        heads = (blocks.num_heads, blocks.head_dim)
        table["probe"] = {
            "query": Leaf((width,), _NORMAL),
            **{name: _dense((width,), heads, bias=blocks.bias) for name in ("key", "value")},
            "out": _dense(heads, (width,)),
        }
    if spec.further is not None:
        table["further"] = {"blocks": block_table(spec.further), "norm": _norm(spec.further, (width,))}
    if spec.projection is not None:
        table["projection"] = _dense((width,), (spec.projection,), bias=spec.projection_bias)
    return table


def text_table(spec: TextSpec) -> Table:
    """Parameters of a text tower."""
    width = spec.blocks.width
    if spec.kind == "hashed":
        assert spec.projection is not None
        return {
            "embedding": Leaf((spec.vocab_size, width), _NORMAL),
            "fc1": _dense((width,), (spec.blocks.mlp_width,)),
            "fc2": _dense((spec.blocks.mlp_width,), (spec.projection,)),
        }
    table = {
        "token_embedding": Leaf((spec.vocab_size, width), _NORMAL),
        "blocks": block_table(spec.blocks),
        "final_norm": _norm(spec.blocks, (width,)),
    }
    if spec.position_table:
        table["position_embedding"] = Leaf((spec.context_length, width), _NORMAL)
    if spec.projection is not None:
        table["projection"] = _dense((width,), (spec.projection,), bias=spec.projection_bias)
    return table


def parameter_table(spec: EncoderSpec) -> Table:
    """Parameters of an encoder; an encoder with text also has the pair's log temperature and offset."""
    table: Table = {"image": image_table(spec.image)}
    if spec.num_classes is not None:
        table["classifier"] = _dense((spec.image.feature_dim,), (spec.num_classes,))
    if spec.text is not None:
        table |= {"text": text_table(spec.text), "logit_scale": Leaf((), nn.initializers.constant(math.log(1 / 0.07)))}
        if spec.family == "siglip" or spec.logit_bias:
            table["logit_bias"] = Leaf((), nn.initializers.constant(-10.0))
    return table


def parameter_shapes(spec: EncoderSpec, dtype: DTypeLike = jnp.float32) -> Parameters:
    """The parameters of an encoder as `jax.ShapeDtypeStruct`s."""
    return from_tree(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype),
            parameter_table(spec),
            is_leaf=lambda node: isinstance(node, Leaf),
        )
    )


def count_parameters(table: Table) -> int:
    """Number of scalars in a table."""
    leaves = jax.tree.leaves(table, is_leaf=lambda node: isinstance(node, Leaf))
    return sum(math.prod(leaf.shape) for leaf in leaves)
