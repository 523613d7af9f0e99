"""What a program costs on a TPU, asked of the TPU compiler on a machine without one (`pip install regcache-jax[tpu]`).

`libtpu` compiles for a described topology, and its `estimated_cycles` are the same everywhere. A process can describe one kind
of chip, and must say which before JAX starts; so `report` runs this module as a child process, one for each question.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.names import from_names, to_names
from regcache_jax.core.plan import RegisterPlan, Schedule, empty_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Block, Grid, ImageTower
from regcache_jax.core.spec import EncoderSpec, ImageSpec
from regcache_jax.encoders import catalog
from regcache_jax.encoders.blocks import ACTIVATIONS
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.parameters import parameter_shapes
from regcache_jax.encoders.serving import TILE, num_rows
from regcache_jax.encoders.serving_program import ServingWeights, prepare, serve
from regcache_jax.quantization.parts import head_stack, with_rounded_stack
from regcache_jax.quantization.quantize import quantize_kernels
from regcache_jax.tpu.batches import cheapest, sweep

Shapes = Any
"""A tree of `jax.ShapeDtypeStruct`."""

CHIPS: dict[str, tuple[str, float, float]] = {
    # topology's prefix: accelerator type, clock in Hz, int8 operations a cycle and core. Published peaks: v4 275, v5p 459, v5e
    # 197 (394 in int8), v6e 918 (1836 in int8) Tflop/s a chip; the clock is the peak over what the matrix units do in a cycle.
    "v4": ("v4-8", 1.05e9, 131_072.0),
    "v5e": ("v5litepod-4", 1.5e9, 262_144.0),
    "v5p": ("v5p-8", 1.75e9, 262_144.0),
    "v6e": ("v6e-4", 1.75e9, 1_048_576.0),
}
SWEEP = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64)
"""Batches that a sweep chooses from (`batches.sweep`)."""

PROGRAMS = ("flax-bf16", "bf16", "int8", "int8+registers", "int8+registers+deletion")
INTEGER_TILE = 32
"""Rows of a TPU's registers that hold int8."""
ABSURD = 1e12
"""More cycles than any image costs: an estimate above it is a fault of the compiler's (2.5e20 has been seen)."""


class Peer(nn.Module):
    """The ordinary Flax Linen encoder in bf16, as big_vision writes it: what a user would run without this project."""

    spec: ImageSpec

    @nn.compact
    def __call__(self, images: Float[Array, "B Y X 3"]) -> Float[Array, "B E"]:
        """Pooled features."""
        spec, blocks = self.spec, self.spec.blocks
        options: dict[str, Any] = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
        norm = {**options, "epsilon": blocks.norm_eps}
        patch = (spec.patch_size, spec.patch_size)
        hidden = nn.Conv(blocks.width, patch, patch, padding="VALID", use_bias=spec.patch_bias, **options)(images)
        hidden = hidden.reshape(hidden.shape[0], -1, blocks.width)
        normal = nn.initializers.normal()
        if spec.num_protected:
            front = self.param("front", normal, (1, spec.num_protected, blocks.width), jnp.bfloat16)
            hidden = jnp.concatenate([jnp.tile(front, (len(images), 1, 1)), hidden], axis=1)
        hidden = hidden + self.param("positions", normal, (1, spec.num_tokens, blocks.width), jnp.bfloat16)
        if spec.pre_norm:
            hidden = nn.LayerNorm(**norm)(hidden)
        for _ in range(blocks.num_blocks):
            normed = nn.LayerNorm(**norm)(hidden)
            hidden = hidden + nn.MultiHeadDotProductAttention(blocks.num_heads, **options)(normed, normed)
            hidden = hidden + self.mlp(nn.LayerNorm(**norm)(hidden), options)
        tokens = nn.LayerNorm(**norm)(hidden)
        if spec.pooling == "map":
            probe = self.param("probe", normal, (1, 1, blocks.width), jnp.bfloat16)
            probe = jnp.tile(probe, (len(images), 1, 1))
            pooled = nn.MultiHeadDotProductAttention(blocks.num_heads, **options)(probe, tokens)
            pooled = (pooled + self.mlp(nn.LayerNorm(**norm)(pooled), options))[:, 0]
        else:
            pooled = tokens[:, 0] if spec.pooling == "class" else jnp.mean(tokens, axis=1)
        return pooled if spec.projection is None else nn.Dense(spec.projection, **options)(pooled)

    def mlp(self, hidden: Float[Array, "B N D"], options: dict[str, Any]) -> Float[Array, "B N D"]:
        """Two layers, or SwiGLU."""
        blocks = self.spec.blocks
        activate = ACTIVATIONS[blocks.activation]
        features = nn.Dense(blocks.mlp_width, **options)(hidden)
        features = activate(features)
        if blocks.gated_mlp:
            features = features * nn.Dense(blocks.mlp_width, **options)(hidden)
        return nn.Dense(blocks.width, **options)(features)


def serving_shapes(spec: EncoderSpec, scheme: Scheme | None, registers: int = 0) -> ServingWeights:
    """What a serving program takes: the image tower in bf16, integer kernels and float32 scales where quantised, one tree a
    block, and so many registers a block."""
    tower = parameter_shapes(spec, jnp.bfloat16).image
    num_blocks = spec.image.blocks.num_blocks

    def rounded(tower: ImageTower) -> ImageTower:
        if scheme is None:
            return tower
        own = scheme.of_part("head")
        if own is not None and tower.head is not None:
            head = with_rounded_stack(tower.head, _rounded_stack(head_stack(tower.head), own, 1))
            tower = tower.replace(head=head)
        return tower.replace(blocks=_rounded_stack(tower.blocks, scheme, num_blocks))

    blocks = spec.image.blocks
    plan = empty_plan(num_blocks, blocks.num_heads, blocks.head_dim, registers) if registers else None
    return jax.eval_shape(lambda tower, plan: prepare(rounded(tower), scheme, plan), tower, plan)


def _rounded_stack(blocks: Block, scheme: Scheme, num_blocks: int) -> Block:
    """Stacked blocks with integer kernels, and scales (whose values do not matter here) where they are calibrated."""
    calibrated = scheme.inputs if scheme.calibrated else ()
    grids = {site: Grid(jnp.ones(num_blocks)) for site in calibrated if site not in scheme.float_sites}
    return quantize_kernels(blocks, scheme).with_grids(grids)


def default_schedule(spec: ImageSpec, program: str) -> Schedule:
    """Registers from a quarter of the depth on; the deletion, where asked for, at that block, of as few tokens as leave whole
    tiles of integers (of floats, where tokens are few) with the register's row in the last."""
    blocks = spec.blocks.num_blocks
    if program not in PROGRAMS[3:]:
        return Schedule(0, 0, 0, 0)
    count = 0
    if program == PROGRAMS[4]:
        tile = INTEGER_TILE if spec.num_tokens >= 2 * INTEGER_TILE else TILE
        count = spec.num_tokens + 1 - (num_rows(spec.num_tokens, 1, tile) - tile)
    return Schedule(blocks // 4, blocks, blocks // 4, count)


def program(spec: EncoderSpec, name: str, scheme: Scheme | None, schedule: Schedule | None) -> tuple[Any, Shapes]:
    """A function of (weights, images) for one of `PROGRAMS`, and the weights' shapes."""
    image = spec.image
    if name == "flax-bf16":
        peer = Peer(image)
        example = jax.ShapeDtypeStruct((1, image.image_size, image.image_size, 3), jnp.bfloat16)
        return peer.apply, jax.eval_shape(peer.init, jax.random.key(0), example)
    scheme = None if name == "bf16" else scheme
    schedule = schedule if schedule is not None and name in PROGRAMS[3:] else default_schedule(image, name)
    if name == "int8+registers":
        schedule = dataclasses.replace(schedule, delete_count=0)
    return _features(image, schedule, scheme), serving_shapes(spec, scheme, int(name in PROGRAMS[3:]))


def _features(
    spec: ImageSpec, schedule: Schedule, scheme: Scheme | None
) -> Callable[[ServingWeights, Float[Array, "B Y X 3"]], Float[Array, "B E"]]:
    """Pooled features in the serving form."""
    return lambda weights, images: serve(weights, images, spec, schedule, scheme).features


def compile_for(topology: str, function: Any, *shapes: Shapes) -> Any:
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


def measure(
    topology: str, spec: EncoderSpec, name: str, batch: int, scheme: Scheme | None, schedule: Schedule | None
) -> dict:
    """One program at one batch, as a row of the report."""
    function, weights = program(spec, name, scheme, schedule)
    pixels = spec.image.image_size
    images = jax.ShapeDtypeStruct((batch, pixels, pixels, 3), jnp.bfloat16)
    compiled = compile_for(topology, function, weights, images)
    cycles, unestimated = estimates(compiled.as_text())
    memory = compiled.memory_analysis()
    pixel_bytes = images.size * images.dtype.itemsize
    clock = CHIPS[topology.split(":")[0]][1]
    return {
        "program": name,
        "batch": batch,
        "cycles_per_image": cycles / batch,
        "images_per_second": clock * batch / cycles,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes - pixel_bytes,
        "unestimated": sum(unestimated.values()),
        "unestimated_calls": unestimated,
    }


def _answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What the child process does: compiles what was asked for, each program at `batch` or at its best one."""
    spec = EncoderSpec.from_json(request["spec"])
    scheme = Scheme.from_json(request["scheme"])
    schedule = None if request["schedule"] is None else Schedule(**request["schedule"])
    asked = request["topology"], spec, scheme, schedule
    return [_best(name, SWEEP if request["sweep"] else (request["batch"],), *asked) for name in request["programs"]]


def _best(
    name: str,
    batches: tuple[int, ...],
    topology: str,
    spec: EncoderSpec,
    scheme: Scheme | None,
    schedule: Schedule | None,
) -> dict[str, Any]:
    """The row of one program at the best of some batches, with the cycles an image of all that were tried (None: it cannot be)."""
    rows: dict[int, dict[str, Any]] = {}

    def cost(batch: int) -> float:
        try:
            row = measure(topology, spec, name, batch, scheme, schedule)
        except (UserError, jax.errors.JaxRuntimeError) as error:  # absurd, or more than the chip's memory
            fault = str(error).split("\n")[0]
            row = {"program": name, "batch": batch, "cycles_per_image": None, "fault": fault}
        rows[batch] = row
        print(json.dumps(row), file=sys.stderr, flush=True)
        return row["cycles_per_image"] or float("inf")

    tried = sweep(cost, batches)
    best = rows[cheapest(tried) or min(tried)]
    return {**best, "tried": [[batch, rows[batch]["cycles_per_image"]] for batch in sorted(rows)]}


def report(
    name_or_spec: str | EncoderSpec,
    topology: str = "v5e:2x2",
    batch: int = 32,
    scheme: Scheme | None = None,
    plan: RegisterPlan | None = None,
    sweep: bool = False,
    programs: tuple[str, ...] = PROGRAMS,
) -> dict[str, Any]:
    """Compiles `programs` of an encoder for `topology` and returns cycles an image, images a second at the chip's clock (which
    the compiler's figure promises, no device has shown), memory, and how many instructions carry no estimate.

    `sweep` gives each program the batch that suits it best. `plan`: its block numbers and delete count; without one, those of
    `default_schedule`. Raises UserError for an unknown name or topology, and where libtpu is missing."""
    spec = name_or_spec if isinstance(name_or_spec, EncoderSpec) else catalog.get(name_or_spec).spec
    assert spec is not None  # `get` refuses encoders that are known by name only
    check_topology(topology)
    unknown = sorted(set(programs) - set(PROGRAMS))
    if unknown or batch < 1:
        raise UserError(f"programs are {', '.join(PROGRAMS)}, batch at least 1; got {', '.join(unknown) or batch}")
    schedule = None if plan is None else dataclasses.asdict(plan.schedule())
    request = {
        "spec": spec.to_json(), "topology": topology, "batch": batch, "sweep": sweep, "programs": programs,
        "scheme": (scheme or Scheme()).to_json(), "schedule": schedule,
    }  # fmt: skip
    return {"model": spec.name, "topology": topology, "programs": _ask(topology, request)}


def encoder_cycles(encoder: Encoder, topology: str = "v5e:2x2", batch: int = 32) -> float:
    """Cycles an image of one encoder as it is: its scheme, what its method left beside the kernels, its plan.

    Raises UserError for an unknown topology, where libtpu is missing, and where the compiler gives no figure."""
    check_topology(topology)
    named = to_names(jax.eval_shape(lambda encoder: encoder.astype(jnp.bfloat16).params, encoder))
    shapes = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in named.items()}
    schedule, plan = encoder.schedule, encoder.plan
    request = {
        "spec": encoder.spec.to_json(), "topology": topology, "batch": batch, "shapes": shapes,
        "scheme": None if encoder.scheme is None else encoder.scheme.running.to_json(),
        "schedule": None if schedule is None else dataclasses.asdict(schedule),
        "registers": None if plan is None else plan.key.shape[1],
    }  # fmt: skip
    return _cycles(topology, json.dumps(request))


@functools.cache
def _cycles(topology: str, request: str) -> float:
    """Encoders that run alike are compiled once."""
    (row,) = _ask(topology, json.loads(request))
    return row["cycles_per_image"]


def check_topology(topology: str) -> None:
    """Raises UserError for one that is not of the known chips."""
    if topology.split(":")[0] not in CHIPS:
        raise UserError(f"topology must be of {', '.join(CHIPS)} (v5e:2x2, say), got {topology!r}")


def _answer_encoder(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What the child process does for `encoder_cycles`."""
    spec = EncoderSpec.from_json(request["spec"])
    image, blocks = spec.image, spec.image.blocks
    scheme = None if request["scheme"] is None else Scheme.from_json(request["scheme"])
    schedule = Schedule(0, 0, 0, 0) if request["schedule"] is None else Schedule(**request["schedule"])
    named = {
        name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(kind)) for name, (shape, kind) in request["shapes"].items()
    }
    tower, plan = from_names(named).image, None
    if request["registers"] is not None:
        plan = empty_plan(blocks.num_blocks, blocks.num_heads, blocks.head_dim, request["registers"])
    weights = jax.eval_shape(lambda tower, plan: prepare(tower, scheme, plan), tower, plan)
    images = jax.ShapeDtypeStruct((request["batch"], image.image_size, image.image_size, 3), jnp.bfloat16)
    compiled = compile_for(request["topology"], _features(image, schedule, scheme), weights, images)
    return [{"cycles_per_image": estimates(compiled.as_text())[0] / request["batch"]}]


def _ask(topology: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Asks a child process. Raises UserError where it gives no answer.

    XLA_FLAGS are for the platform of this process: libtpu ends at one that it does not know, and takes its own from LIBTPU_INIT_ARGS."""
    kind = topology.split(":")[0]
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": CHIPS[kind][0],
        "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "XLA_FLAGS": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "regcache_jax.tpu.ask"]
    child = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=environment)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        hint = "; `pip install regcache-jax[tpu]` brings the compiler" if "libtpu" in child.stderr else ""
        raise UserError(f"the TPU compiler gave no answer for {topology}: {last}{hint}")
    return json.loads(child.stdout.splitlines()[-1])


def shallow(spec: EncoderSpec, num_blocks: int) -> EncoderSpec:
    """The same encoder with fewer blocks in its image tower."""
    blocks = dataclasses.replace(spec.image.blocks, num_blocks=num_blocks)
    return dataclasses.replace(spec, image=dataclasses.replace(spec.image, blocks=blocks))


def best_micro_batch(
    name_or_spec: str | EncoderSpec,
    topology: str = "v5e:2x2",
    scheme: Scheme | None = None,
    plan: RegisterPlan | None = None,
) -> int:
    """The batch at which a core needs the fewest cycles an image, by `report`'s sweep: what an evaluation or a server should cut
    larger batches into. Minutes; raises UserError as `report` does."""
    wanted = "bf16" if scheme is None else "int8" if plan is None else "int8+registers+deletion"
    (row,) = report(name_or_spec, topology, scheme=scheme, plan=plan, sweep=True, programs=(wanted,))["programs"]
    return row["batch"]


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps((_answer_encoder if "shapes" in asked else _answer)(asked)))
