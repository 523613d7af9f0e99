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
NOTHING = ("ConcatBitcast", "AllocateBuffer")
"""Calls that take no time: the slices of one prefetched weight named as one array, and the place of what a loop puts together."""
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
    """The sum of the estimated cycles in a compiled program's text, and how many custom calls, sorts and loops carry none.

    A loop's body counts as often as it runs: as the one number says that its condition compares with; a loop whose condition has
    another form counts once, and is told. Calls of `NOTHING` are left out. Raises UserError for an absurd figure."""
    computations, cycles = _computations(text), 0
    turns, unestimated = _turns(computations)
    for name, lines in computations.items():
        for line in lines:
            estimate = re.search(r'"estimated_cycles":"?(\d+)', line)
            if estimate and int(estimate[1]) > ABSURD:
                told = f"the compiler estimates {int(estimate[1]):.3g} cycles for one instruction"
                raise UserError(f"{told}, which cannot be: figure thrown out")
            cycles += turns[name] * int(estimate[1]) if estimate else 0
            kind = re.search(r'custom_call_target="([^"]+)"| (sort)\(', line)
            label = kind and (kind[1] or kind[2])
            if label and label not in NOTHING and not estimate:
                unestimated[label] = unestimated.get(label, 0) + 1
    return cycles, unestimated


def _computations(text: str) -> dict[str, list[str]]:
    """A program's lines by the computation that they stand in; callers stand behind what they call."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        begun = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        name = begun[1] if begun else name
        found.setdefault(name, []).append(line)
    return found


def _turns(computations: dict[str, list[str]]) -> tuple[dict[str, int], dict[str, int]]:
    """How often each computation runs, and how many loops do not say it."""
    turns, untold = dict.fromkeys(computations, 1), 0
    for name in reversed(computations):
        for line in computations[name]:
            for called in re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", line):
                turns[called] = turns[name]
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                bounds = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(computations.get(loop[1], [])))
                turns[loop[2]] = turns[name] * (int(bounds[0]) if len(bounds) == 1 else 1)
                untold += len(bounds) != 1
    return turns, {"while": untold} if untold else {}
