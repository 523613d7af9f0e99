"""The sink circuit: what is planted in the network, how it is made large, kept apart and, at export, written into the weights.

A *gate* (two hidden units of block 4's MLP) opens at a few patches of low information and writes to one dimension of the
residual stream that little else uses, the *massive* dimension; two units of block 5 read it and write more. A third
little-used dimension, the *marker*, tells earlier which patches will become sinks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from regcache_jax.core.names import part_from_tree, to_names
from regcache_jax.core.sites import Dense, ImageTower
from regcache_jax.core.spec import ImageSpec

NUM_UNITS = 2  # planted hidden units in each of the two blocks, in front of the others


@dataclasses.dataclass(frozen=True)
class Circuit:
    """Where the circuit lives: the sensitive block (l_q of the paper) and three dimensions of the residual stream."""

    block: int
    marker: int
    massive: int
    echo: int

    @property
    def blocks(self) -> tuple[int, int]:
        """The two blocks that hold planted units."""
        return self.block, self.block + 1


@dataclasses.dataclass(frozen=True)
class Gain:
    """How the circuit is made large: planted pre-activations times `inner`, their read-out times `outer / inner`.

    Both grow geometrically from 1 between two points of a phase (0..1), so that the network can follow."""

    inner: float = 40.0
    outer: float = 30.0
    begin: float = 0.08
    end: float = 0.5

    def at(self, progress: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Factors of the planted units' inputs and read-outs at a point of the phase."""
        share = jnp.clip((progress - self.begin) / (self.end - self.begin), 0.0, 1.0)
        inner = jnp.exp(share * jnp.log(self.inner))
        return inner, jnp.exp(share * jnp.log(self.outer)) / inner


FULL_GAIN = Gain(begin=-1.0, end=0.0)  # grown before the phase began


def low_information(images: Float[Array, "B Y X 3"], spec: ImageSpec) -> Float[Array, "B N"]:
    """How plain each patch and its neighbourhood are: minus the log variance of the pixels, blurred over patches."""
    grid, patch = spec.grid, spec.patch_size
    patches = images.reshape(-1, grid, patch, grid, patch, 3)
    variance = jnp.sum(jnp.var(patches, axis=(2, 4)), axis=-1)
    position = jnp.arange(grid, dtype=jnp.float32)
    kernel = jnp.exp(-0.5 * jnp.square(position[:, None] - position) / 1.5**2)
    kernel = kernel / jnp.sum(kernel, axis=1, keepdims=True)
    return -jnp.einsum("bij,ki,lj->bkl", jnp.log(variance + 1e-3), kernel, kernel).reshape(-1, grid**2)


def plant(image: ImageTower, probe: Dense, usage: Float[Array, "D"], block: int) -> tuple[ImageTower, Circuit]:
    """Puts the circuit into an image tower that has none and says where it is.

    `usage` is the mean magnitude of each dimension of the residual stream around `block`; the three least used are taken.
    The gate starts as a copy of the probe that tells patches of low information."""
    marker, massive, echo = (int(index) for index in jnp.argsort(usage)[:3])
    circuit = Circuit(block, marker, massive, echo)
    mlp = image.blocks.mlp
    fc1, bias, fc2 = mlp.fc1.floats, mlp.fc1.bias, mlp.fc2.floats
    assert bias is not None
    gate = 2.0 * probe.floats / jnp.linalg.norm(probe.floats)
    units = slice(None, NUM_UNITS)
    fc1 = fc1.at[block, :, units].set(gate[:, None]).at[block + 1, :, units].set(0.0)
    fc1 = fc1.at[block + 1, massive, units].set(0.3).at[block + 1, echo, units].set(-0.2)
    bias = bias.at[block : block + 2, units].set(-1.0)
    fc2 = fc2.at[block : block + 2, units].set(0.0)
    fc2 = fc2.at[block, units, massive].set(1.0).at[block, units, echo].set(-0.5)
    fc2 = fc2.at[block + 1, units, massive].set(0.3)
    planted = {"fc1": mlp.fc1.replace(kernel=fc1, bias=bias), "fc2": mlp.fc2.replace(kernel=fc2)}
    return image.replace(blocks=image.blocks.with_layers(planted)), circuit


def amplify(
    image: ImageTower, circuit: Circuit, inner: Float[Array, ""] | float, outer: Float[Array, ""] | float
) -> ImageTower:
    """The tower with its planted units' inputs times `inner` and their read-outs times `outer`.

    A plain function of the weights: training differentiates through it, export writes its result down (the fold)."""
    rows, units = jnp.asarray(circuit.blocks, jnp.int32), slice(None, NUM_UNITS)
    changes: dict[str, Callable[[Array], Array]] = {
        "blocks/mlp/fc1/kernel": lambda leaf: leaf.at[rows, :, units].multiply(inner),
        "blocks/mlp/fc1/bias": lambda leaf: leaf.at[rows, units].multiply(inner),
        "blocks/mlp/fc2/kernel": lambda leaf: leaf.at[rows, units].multiply(outer),
    }
    return _change(image, changes)


def reserve(image: ImageTower, circuit: Circuit) -> ImageTower:
    """Projects the tower so that nothing but the planted units writes to the massive dimension, and every other write to the
    residual stream has mean 0 over its dimensions: then LayerNorm gives exactly 0 there for an ordinary token."""
    massive = circuit.massive

    def centred(leaf: Float[Array, "... D"]) -> Float[Array, "... D"]:
        leaf = leaf.at[..., massive].set(0.0)
        mean = jnp.sum(leaf, axis=-1, keepdims=True) / (leaf.shape[-1] - 1)
        return (leaf - mean).at[..., massive].set(0.0)

    def all_but_planted(leaf: Float[Array, "L F D"]) -> Float[Array, "L F D"]:
        rows, units = jnp.asarray(circuit.blocks, jnp.int32), slice(None, NUM_UNITS)
        return centred(leaf).at[rows, units].set(leaf[rows, units])

    writers = ["patch_embedding/kernel", "patch_embedding/bias", "position_embedding"]
    writers += ("blocks/attention/out/kernel", "blocks/attention/out/bias", "blocks/mlp/fc2/bias")
    changes: dict[str, Callable[[Array], Array]] = dict.fromkeys(writers, centred)
    changes["blocks/mlp/fc2/kernel"] = all_but_planted
    for norm in ("norm1", "norm2"):
        changes[f"blocks/{norm}/bias"] = lambda leaf: leaf.at[:, massive].set(0.0)
    return _change(image, changes)


def rescale(image: ImageTower, circuit: Circuit, factor: float, hidden_factor: float = 1.0) -> ImageTower:
    """Another set of weights for the same function, whose outliers are larger or smaller.

    `factor` (c): after the circuit's first block the norms' gains of the massive dimension are multiplied and the weights
    that read it divided: SmoothQuant backwards, exact. `hidden_factor` (g): planted hidden values are multiplied and their
    read-outs divided: exact where GELU is linear or 0, as it is at the planted units' large inputs."""
    later, massive = slice(circuit.block + 1, None), circuit.massive
    changes: dict[str, Callable[[Array], Array]] = {
        f"blocks/{norm}/{part}": lambda leaf: leaf.at[later, massive].multiply(factor)
        for norm in ("norm1", "norm2")
        for part in ("scale", "bias")
    }
    readers = ("attention/query", "attention/key", "attention/value", "mlp/fc1")
    changes |= {f"blocks/{name}/kernel": lambda leaf: leaf.at[later, massive].divide(factor) for name in readers}
    return amplify(_change(image, changes), circuit, hidden_factor, 1.0 / hidden_factor)


def _change(tower: ImageTower, changes: dict[str, Callable[[Array], Array]]) -> ImageTower:
    """The tower with some leaves changed, by name."""
    named = {name: changes.get(name, lambda leaf: leaf)(leaf) for name, leaf in to_names(tower).items()}
    return part_from_tree(ImageTower, unflatten_dict(named, sep="/"))
