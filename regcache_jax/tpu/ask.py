"""What a program costs on a TPU, asked of the TPU compiler on a machine without one (extra `tpu`).

`libtpu` compiles for a described topology, and its `estimated_cycles` are the same everywhere. A process can describe one kind
of chip, and must say which before JAX starts; so `report` runs this module as a child process, one for each question.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp

from regcache_jax.core.errors import UserError
from regcache_jax.core.names import from_names, to_names
from regcache_jax.core.plan import RegisterPlan, Schedule, empty_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.forms import PLAIN, form_for
from regcache_jax.encoders.serving_program import prepare
from regcache_jax.tpu.batches import cheapest, sweep
from regcache_jax.tpu.compiler import CHIPS, check_topology, compile_for, estimates
from regcache_jax.tpu.programs import PROGRAMS, program, serving_features
from regcache_jax.tpu.question import Question, ask, question

SWEEP = (1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64)
"""Batches that a sweep chooses from (`batches.sweep`)."""


def _chip(topology: str) -> str:
    """`v5e` of `v5e:2x2`."""
    return topology.split(":")[0]


def measure(asked: Question, name: str, batch: int) -> dict[str, Any]:
    """One program at one batch, as a row of the report."""
    image, chip = asked.spec.image, _chip(asked.target)
    form = PLAIN if name == "flax-bf16" else form_for(chip, image, asked.scheme if name.startswith("int8") else None)
    function, weights = program(asked.spec, name, asked.scheme, asked.schedule, form, asked.registers)
    images = jax.ShapeDtypeStruct((batch, *image.picture_shape), jnp.bfloat16)
    compiled = compile_for(asked.target, function, weights, images)
    cycles, unestimated = estimates(compiled.as_text() or "")
    memory = compiled.memory_analysis()
    assert memory is not None
    pixel_bytes = images.size * images.dtype.itemsize
    return {
        "program": name,
        "form": form.name,
        "batch": batch,
        "cycles_per_image": cycles / batch,
        "images_per_second": CHIPS[chip][1] * batch / cycles,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes - pixel_bytes,
        "unestimated": sum(unestimated.values()),
        "unestimated_calls": unestimated,
    }


def _answer(asked: Question) -> list[dict[str, Any]]:
    """What the child process does: compiles what was asked for, each program at all `batches` or at its best one."""
    rows: list[dict[str, Any]] = []
    for name in asked.programs:
        tried: dict[int, dict[str, Any]] = {}

        def cost(batch: int, name: str = name, tried: dict[int, dict[str, Any]] = tried) -> float:
            try:
                row = measure(asked, name, batch)
            except (UserError, jax.errors.JaxRuntimeError) as error:  # absurd, or more than the chip's memory
                fault = str(error).split("\n")[0]
                row = {"program": name, "batch": batch, "cycles_per_image": None, "fault": fault}
            tried[batch] = row
            return row["cycles_per_image"] or float("inf")

        if asked.batches is None:
            best = cheapest(sweep(cost, SWEEP)) or min(tried)
            found = [[batch, tried[batch]["cycles_per_image"]] for batch in sorted(tried)]
            rows.append({**tried[best], "tried": found})
        else:
            for batch in asked.batches:
                cost(batch)
            rows += tried.values()
    return rows


def report(
    name_or_spec: str | EncoderSpec,
    topology: str = "v5e:2x2",
    batches: tuple[int, ...] | None = None,
    scheme: Scheme | None = None,
    plan: RegisterPlan | None = None,
    programs: tuple[str, ...] = PROGRAMS,
) -> dict[str, Any]:
    """Compiles `programs` of an encoder for `topology` and returns cycles an image, images a second at the chip's clock (which
    the compiler's figure promises, no device has shown), memory, and how many instructions carry no estimate.

    `batches`: a row for each; None gives each program the batch that suits it best. `plan`: its block numbers and delete count; without
    one, those of `default_schedule`. Raises UserError for an unknown name or topology, and where libtpu is missing."""
    check_topology(topology)
    asked = question(name_or_spec, topology, programs, batches, scheme, plan)
    rows = _ask(topology, asked.to_json())
    return {"model": asked.spec.name, "topology": topology, "programs": rows, "advice": advice(rows)}


def advice(rows: list[dict[str, Any]]) -> str | None:
    """What a report's rows say of int8 for speed; None where they hold no float program, or no integer one, that can be."""
    done = sorted(
        (row for row in rows if row["cycles_per_image"] is not None), key=lambda row: -row["cycles_per_image"]
    )
    costs = {row["program"]: row["cycles_per_image"] for row in done}  # of several batches the best
    integer = {name: cycles for name, cycles in costs.items() if name.startswith("int8")}
    floating = {name: cycles for name, cycles in costs.items() if name not in integer}
    if not integer or not floating:
        return None
    best, other = min(integer, key=lambda name: integer[name]), min(floating, key=lambda name: floating[name])
    ratio = integer[best] / floating[other]
    if ratio < 1:
        return f"{best} takes {ratio:.2f} of the cycles of {other}"
    return f"{best} takes {ratio:.2f} times the cycles of {other}: on this chip int8 saves memory, not time; for speed run bf16"


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
    form = form_for(_chip(request["topology"]), image, scheme)
    weights = jax.eval_shape(lambda tower, plan: prepare(tower, scheme, plan, form), tower, plan)
    images = jax.ShapeDtypeStruct((request["batch"], *image.picture_shape), jnp.bfloat16)
    compiled = compile_for(request["topology"], serving_features(image, schedule, scheme, form), weights, images)
    return [{"cycles_per_image": estimates(compiled.as_text() or "")[0] / request["batch"]}]


def _ask(topology: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Asks a child process. Raises UserError where it gives no answer. libtpu takes its flags from LIBTPU_INIT_ARGS, and ends at an
    XLA_FLAGS that it does not know."""
    environment = {
        "TPU_ACCELERATOR_TYPE": CHIPS[_chip(topology)][0], "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }  # fmt: skip
    return ask("regcache_jax.tpu.ask", request, environment, f"the TPU compiler gave no answer for {topology}", "tpu")


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
    (row,) = report(name_or_spec, topology, scheme=scheme, plan=plan, programs=(wanted,))["programs"]
    return row["batch"]


if __name__ == "__main__":
    request = json.load(sys.stdin)
    print(json.dumps(_answer_encoder(request) if "shapes" in request else _answer(Question.from_json(request))))
