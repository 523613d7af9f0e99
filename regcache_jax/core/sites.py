"""The parameters of an encoder as named pytrees: weights, and beside them what rounds their inputs.

Blocks are stacked: every array of a `Block` has the axis L of the blocks in front (`*L`: absent in one block, as it stands inside
a scan). What an encoder does not have is None. `core.names` has the name of every leaf on disk.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int8

from regcache_jax.core.scheme import SITE_LAYERS
from regcache_jax.core.struct import Struct


def part(kind: type, *, num_inputs: int = 1, **how: Any) -> Any:
    """A field that holds another of these structs; `num_inputs` of a `Dense`."""
    return struct.field(metadata={"part": kind, "num_inputs": num_inputs}, **how)


# `no_type_check`: JAX rebuilds pytrees with whatever leaves a transformation has in hand.


@typing.no_type_check
@struct.dataclass
class QuantizedTensor(Struct):
    """`values * scale` is what was quantised; `scale` has the rank of `values`, with ones on the axes that share it."""

    values: Int8[Array, "..."]
    scale: Float[Array, "..."]

    def dequantize(self) -> Float[Array, "..."]:
        """The float32 array that the integers stand for."""
        return self.values.astype(jnp.float32) * self.scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the integers."""
        return self.values.shape


@typing.no_type_check
@struct.dataclass
class Norm(Struct):
    """Scale and bias of a LayerNorm (over heads H, K where queries and keys are normed); an RMSNorm has no bias, but for one that a
    method left."""

    scale: Float[Array, "*L ..."]
    bias: Float[Array, "*L ..."] | None = None


@typing.no_type_check
@struct.dataclass
class Dense(Struct):
    """A layer from `num_inputs` axes to the others. Beside an integer kernel: the bias is float32 and has a zero point's product
    folded in; `float_kernel` holds, packed, the kernels of the blocks that rules leave in float (their integers are zero);
    `product_scale`, in serving programs alone, is the input's scale times the kernel's."""

    kernel: Float[Array, "*L ..."] | QuantizedTensor
    bias: Float[Array, "*L ..."] | None = None
    float_kernel: Float[Array, "n ..."] | None = None
    product_scale: Float[Array, "*L ..."] | None = None
    num_inputs: int = struct.field(pytree_node=False, default=1)

    @property
    def floats(self) -> Float[Array, "*L ..."]:
        """The kernel of a float layer."""
        assert not isinstance(self.kernel, QuantizedTensor)
        return self.kernel

    @property
    def integers(self) -> QuantizedTensor:
        """The kernel of an integer layer."""
        assert isinstance(self.kernel, QuantizedTensor)
        return self.kernel

    @property
    def input_axes(self) -> tuple[int, ...]:
        """The contracted axes of a stacked kernel."""
        return tuple(range(1, 1 + self.num_inputs))

    def matrix(self) -> Float[Array, "L C M"]:
        """A stacked kernel, in float32, as matrices from C input to M output channels."""
        kernel = self.kernel.dequantize() if isinstance(self.kernel, QuantizedTensor) else self.kernel
        inputs = math.prod(kernel.shape[1 : 1 + self.num_inputs])
        return kernel.astype(jnp.float32).reshape(kernel.shape[0], inputs, -1)


@typing.no_type_check
@struct.dataclass
class Grid(Struct):
    """What rounds an input: a calibrated scale, one number or one a token group (G: class token, trained registers, patches);
    what is added before rounding (a number, or one a channel; already taken from the biases after); the scale of negative
    values where they have their own. `enabled` turns a simulated grid off by a traced flag. `inverse`, in serving programs alone, is
    one scale's reciprocal."""

    scale: Float[Array, "*L *G"] | None = None
    offset: Float[Array, "*L *C"] | None = None
    negative: Float[Array, "*L"] | None = None
    enabled: Bool[Array, "*L"] | None = None
    inverse: Float[Array, "*L"] | None = None


@typing.no_type_check
@struct.dataclass
class Grids(Struct):
    """The grids of a block's four sites, and of the inputs of attention's own products (a scale each; `softmax_low`: the scale of
    softmax's lower range where it has two). None: measured as it passes, or not rounded."""

    qkv: Grid | None = part(Grid, default=None)
    out: Grid | None = part(Grid, default=None)
    fc1: Grid | None = part(Grid, default=None)
    fc2: Grid | None = part(Grid, default=None)
    query: Grid | None = part(Grid, default=None)
    key: Grid | None = part(Grid, default=None)
    value: Grid | None = part(Grid, default=None)
    softmax_low: Float[Array, "*L"] | None = None

    def of(self, site: str) -> Grid:
        """The grid of a site, or one of which nothing is known."""
        return getattr(self, site) or Grid()


@typing.no_type_check
@struct.dataclass
class Attention(Struct):
    """Head-major projections `[*L, D, H, K]`, and `out` `[*L, H, K, D]`; the norms of queries and keys, and of what is mixed, where
    there are any."""

    query: Dense = part(Dense)
    key: Dense = part(Dense)
    value: Dense = part(Dense)
    out: Dense = part(Dense, num_inputs=2)
    query_norm: Norm | None = part(Norm, default=None)
    key_norm: Norm | None = part(Norm, default=None)
    norm: Norm | None = part(Norm, default=None)


@typing.no_type_check
@struct.dataclass
class MLP(Struct):
    """Two layers, `[*L, D, F]` and `[*L, F, D]`; beside the first a `gate` of the same shape in a gated MLP, before the second a norm
    where there is one."""

    fc1: Dense = part(Dense)
    fc2: Dense = part(Dense)
    gate: Dense | None = part(Dense, default=None)
    norm: Norm | None = part(Norm, default=None)


class _Layered(Struct):
    """What has attention and an MLP: its layers by the name of the site whose input they read."""

    grids: Grids

    def layers(self, site: str) -> dict[str, Dense]:
        """The layers that read a site, by name."""
        found = {name: getattr(getattr(self, group), name) for group, name in SITE_LAYERS[site]}
        return {name: layer for name, layer in found.items() if layer is not None}

    def with_layers(self, changed: Mapping[str, Dense]) -> Any:
        """The same with other layers, by name."""
        groups = {
            group: {
                name: changed[name]
                for layers in SITE_LAYERS.values()
                for at, name in layers
                if at == group and name in changed
            }
            for group in ("attention", "mlp")
        }
        return self.replace(**{group: getattr(self, group).replace(**own) for group, own in groups.items()})

    def with_grids(self, changed: Mapping[str, Grid]) -> Any:
        """The same with other grids, by site."""
        return self.replace(grids=self.grids.replace(**changed))


@typing.no_type_check
@struct.dataclass
class Block(_Layered):
    """Pre-norm blocks. `fc2_multiplier` is a change of units in front of `fc2` that a method left, its inverse in `fc2`'s kernel."""

    norm1: Norm = part(Norm)
    attention: Attention = part(Attention)
    norm2: Norm = part(Norm)
    mlp: MLP = part(MLP)
    layer_scale1: Float[Array, "*L D"] | None = None
    layer_scale2: Float[Array, "*L D"] | None = None
    grids: Grids = part(Grids, default=Grids())
    fc2_multiplier: Float[Array, "*L F"] | None = None

    @property
    def num_blocks(self) -> int:
        """L of a stack."""
        return len(self.norm1.scale)


@typing.no_type_check
@struct.dataclass
class Head(_Layered):
    """Attention pooling: one learned query, then an MLP with a residual. The query's projection is never quantised. `probe_key`, in
    serving programs alone, gives the logits of tokens at once."""

    probe: Float[Array, "D"]
    attention: Attention = part(Attention)
    norm: Norm = part(Norm)
    mlp: MLP = part(MLP)
    grids: Grids = part(Grids, default=Grids())
    probe_key: Float[Array, "D H"] | None = None


@typing.no_type_check
@struct.dataclass
class Probe(Struct):
    """Attention pooling by a learned query as it is, without an MLP. It is never quantised."""

    query: Float[Array, "D"]
    key: Dense = part(Dense)
    value: Dense = part(Dense)
    out: Dense = part(Dense, num_inputs=2)


@typing.no_type_check
@struct.dataclass
class Further(Struct):
    """Blocks behind the final norm, and the norm behind them. They are never quantised."""

    blocks: Block = part(Block)
    norm: Norm = part(Norm)


@typing.no_type_check
@struct.dataclass
class ImageTower(Struct):
    """An image tower. `rotation` turns the residual stream inside the blocks (a method's)."""

    position_embedding: Float[Array, "N D"] | None = struct.field(default=None, kw_only=True)
    patch_embedding: Dense = part(Dense, num_inputs=3)
    blocks: Block = part(Block)
    final_norm: Norm | None = part(Norm, default=None)
    class_token: Float[Array, "D"] | None = None
    registers: Float[Array, "R D"] | None = None
    patch_norm: Norm | None = part(Norm, default=None)
    pre_norm: Norm | None = part(Norm, default=None)
    head: Head | None = part(Head, default=None)
    probe: Probe | None = part(Probe, default=None)
    further: Further | None = part(Further, default=None)
    projection: Dense | None = part(Dense, default=None)
    rotation: Float[Array, "D D"] | None = None


@typing.no_type_check
@struct.dataclass
class TextTower(Struct):
    """A transformer over token ids."""

    token_embedding: Float[Array, "V D"]
    position_embedding: Float[Array, "T D"] | None = struct.field(default=None, kw_only=True)
    blocks: Block = part(Block)
    final_norm: Norm = part(Norm)
    projection: Dense | None = part(Dense, default=None)


@typing.no_type_check
@struct.dataclass
class HashedText(Struct):
    """The bundled encoder's text tower: embeddings of hashed words, summed, and two layers."""

    embedding: Float[Array, "V D"]
    fc1: Dense = part(Dense)
    fc2: Dense = part(Dense)


@typing.no_type_check
@struct.dataclass
class Parameters(Struct):
    """Everything an encoder has learned. `image` is None where a serving program holds the image tower (`Encoder.prepared`)."""

    image: ImageTower = part(ImageTower, default=None)
    text: TextTower | HashedText | None = part(TextTower, default=None)
    logit_scale: Float[Array, ""] | None = None
    logit_bias: Float[Array, ""] | None = None
    classifier: Dense | None = part(Dense, default=None)
