"""The table of docs/performance.md: the TPU compiler on the peer, our bf16 and our int8 programs, each at its best batch.

    python benchmarks/tpu.py                      # all four shapes at the batches of BATCHES: ten minutes
    python benchmarks/tpu.py --sweep              # finds the best batches again: an hour
    python benchmarks/tpu.py --delete 26 google/siglip-so400m-patch14-384       # so many tokens deleted
    python benchmarks/tpu.py --forms              # compile time and size of program: scan against blocks written out

Deterministic: the same figures on every machine, none of them measured on a TPU. The table is held to BOUNDS: where one is broken it
says so and ends with status 1."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from regcache_jax.core.plan import RegisterPlan, Schedule, empty_plan
from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders import catalog
from regcache_jax.encoders.serving_program import serve
from regcache_jax.tpu import ask as tpu
from regcache_jax.tpu import programs

# model: best batch of the peer, of bf16, of int8, with registers, with deletion
BATCHES = {
    "google/siglip-base-patch16-224": (48, 24, 20, 20, 20),
    "openai/clip-vit-base-patch16": (40, 24, 20, 20, 20),
    "openai/clip-vit-large-patch14": (16, 8, 8, 8, 8),
    "google/siglip-so400m-patch14-384": (2, 2, 2, 2, 2),
}

RATIOS = ("registers / int8", "deletion / int8", "deletion / peer")
BOUNDS = {  # at most so much, in the order of RATIOS
    "google/siglip-base-patch16-224": (1.01, 0.98, 0.62),
    "openai/clip-vit-base-patch16": (1.01, 0.98, 0.60),
    "openai/clip-vit-large-patch14": (1.01, 0.95, 0.52),
    "google/siglip-so400m-patch14-384": (1.01, 1.00, 0.57),
}
TOPOLOGY = "v5e:2x2"
"""What the bounds are for."""


def plan_for(model: str, program: str, delete: int | None) -> RegisterPlan | None:
    """The default plan with another number of deleted tokens; None where nothing else than the default was asked for."""
    if delete is None or program != "int8+registers+deletion":
        return None
    image = catalog.get(model).spec.image
    schedule = dataclasses.replace(programs.default_schedule(image, program), delete_count=delete)
    numbers = {name: jnp.int32(number) for name, number in dataclasses.asdict(schedule).items()}
    return empty_plan(image.blocks.num_blocks, image.blocks.num_heads, image.blocks.head_dim).replace(**numbers)


def table(topology: str, models: list[str], sweep: bool, delete: int | None) -> dict:
    """Prints each program as it is done, and returns all of them."""
    found = {"topology": topology, "models": {}}
    for model in models:
        rows = []
        for program, batch in zip(programs.PROGRAMS, BATCHES[model], strict=True):
            plan = plan_for(model, program, delete)
            batches = None if sweep else (batch,)
            (row,) = tpu.report(model, topology, batches, plan=plan, programs=(program,))["programs"]
            rows.append(row)
            print(
                f"{model:34} {program:24} batch {row['batch']:3} {row['cycles_per_image']:12,.0f} cycles an image, "
                f"{row['images_per_second']:7,.0f} images/s, {row['temp_bytes'] / 1e6:5.1f} MB of temporaries, "
                f"{row['argument_bytes'] / 1e6:6.1f} MB of weights, {row['unestimated']} without an estimate",
                flush=True,
            )
        peer, _, plain, registers, deletion = (row["cycles_per_image"] for row in rows)
        ratios = dict(zip(RATIOS, (registers / plain, deletion / plain, deletion / peer), strict=True))
        print(f"{model:34} " + "   ".join(f"{name} {value:.3f}" for name, value in ratios.items()), flush=True)
        found["models"][model] = {"programs": rows, "ratios": ratios}
    return found


def broken(found: dict) -> list[str]:
    """The bounds that a table breaks, a line each: ratios, and instructions without an estimate, in which cycles may hide."""
    lines = []
    for model, held in found["models"].items():
        for bound, (name, ratio) in zip(BOUNDS[model], held["ratios"].items(), strict=True):
            if ratio > bound:
                lines.append(f"{model}: {name} is {ratio:.3f}, and may be {bound:.2f}")
        for row in held["programs"]:
            if row["unestimated"]:
                lines.append(f"{model}: {row['program']} has {row['unestimated']} instructions without an estimate")
    return lines


def forms(model: str, batch: int) -> None:
    """On the CPU's compiler: seconds and instructions for one program, its blocks in a scan and written out."""
    spec = catalog.get(model).spec
    weights = programs.serving_shapes(spec, Scheme())
    images = jax.ShapeDtypeStruct((batch, spec.image.image_size, spec.image.image_size, 3), jnp.bfloat16)
    for unroll in (False, True):

        def features(weights, images, unroll=unroll):
            return serve(weights, images, spec.image, Schedule(0, 0, 0, 0), Scheme(), unroll=unroll).features

        started = time.perf_counter()
        compiled = jax.jit(features).lower(weights, images).compile()
        seconds, lines = time.perf_counter() - started, len(compiled.as_text().splitlines())
        print(f"{model}: {'written out' if unroll else 'scan'}: {seconds:.0f} s, {lines:,} lines of HLO", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default=TOPOLOGY)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--delete", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("models", nargs="*", default=list(BATCHES))
    arguments = parser.parse_args()
    if arguments.forms:
        forms(arguments.models[0], 8)
    else:
        found = table(arguments.topology, arguments.models, arguments.sweep, arguments.delete)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=2))
        if arguments.topology == TOPOLOGY and arguments.delete is None and (faults := broken(found)):
            sys.exit("\n".join(faults))
