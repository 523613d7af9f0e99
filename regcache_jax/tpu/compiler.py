"""The TPU compiler, for chips that are described and not there: programs compiled, and the cycles that it estimates."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from regcache_jax.core.errors import UserError

CHIPS: dict[str, tuple[str, float, float]] = {
    # topology's prefix: accelerator type, clock in Hz, int8 operations a cycle and core. Published peaks: v4 275, v5p 459, v5e
    # 197 (394 in int8), v6e 918 (1836 in int8) Tflop/s a chip; the clock is the peak over what the matrix units do in a cycle. A v5p's two
    # cores count as one: the estimate of the Flax peer is below what the products of a block would take one of them.
    "v4": ("v4-8", 1.05e9, 131_072.0),
    "v5e": ("v5litepod-4", 1.5e9, 262_144.0),
    "v5p": ("v5p-8", 1.75e9, 524_288.0),
    "v6e": ("v6e-4", 1.75e9, 1_048_576.0),
}
ABSURD = 1e12
"""More cycles than any image costs: an estimate above it is a fault of the compiler's (2.5e20 has been seen)."""


def check_topology(topology: str) -> None:
    """Raises UserError for one that is not of the known chips."""
    if topology.split(":")[0] not in CHIPS:
        raise UserError(f"topology must be of {', '.join(CHIPS)} (v5e:2x2, say), got {topology!r}")


def compile_for(topology: str, function: Callable[..., PyTree], *shapes: PyTree) -> jax.stages.Compiled:
    """Compiles for one core of a described topology; no array is ever made."""
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    core = NamedSharding(Mesh(np.array(described.devices[:1]), ("data",)), PartitionSpec())
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=core), shapes)
    return jax.jit(function).trace(*placed).lower().compile()


def estimates(text: str) -> tuple[int, dict[str, int]]:
    """The sum of the estimated cycles in a compiled program's text, and how many custom calls and sorts carry none.

    A loop's body counts once, so programs are written out block by block. ConcatBitcast, which names the slices of one
    prefetched weight as one array, does nothing and is left out. Raises UserError for an absurd figure."""
    cycles = [int(number) for number in re.findall(r'"estimated_cycles":"?(\d+)', text)]
    absurd = [number for number in cycles if number > ABSURD]
    if absurd:
        raise UserError(
            f"the compiler estimates {absurd[0]:.3g} cycles for one instruction, which cannot be: figure thrown out"
        )
    unestimated: dict[str, int] = {}
    for line in text.splitlines():
        kind = re.search(r'custom_call_target="([^"]+)"| (sort)\(', line)
        if kind and "ConcatBitcast" not in line and "estimated_cycles" not in line:
            label = kind[1] or kind[2]
            unestimated[label] = unestimated.get(label, 0) + 1
    return sum(cycles), unestimated
