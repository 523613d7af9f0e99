"""Where the cycles of a block go, by part and program: what a program of three blocks has more than one of two, by the TPU compiler.

    python benchmarks/tpu_profile.py google/siglip-base-patch16-224 --batch 24                      # the peer, bf16 and int8 on a v5e
    python benchmarks/tpu_profile.py google/siglip-base-patch16-224 --batch 16 --topology v6e:2x2
    python benchmarks/tpu_profile.py google/siglip-so400m-patch14-384 --batch 2 --programs int8 --form slot --operations 40

Cycles an image. A fusion counts where its products do (q k^T and p v are `attention`), and one without products is `between`: norms,
roundings, copies. `at peak`: what the products alone would take. `--activation relu`: as if the MLP had that one. `--operations N`: the
dearest of the program of three blocks as well."""

import argparse
import collections
import dataclasses
import os
import re

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp

from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders import catalog
from regcache_jax.encoders.forms import PLAIN, Form, form_for
from regcache_jax.tpu import ask as tpu
from regcache_jax.tpu import compiler, programs

PARTS = ("qkv", "attention", "out", "fc1", "fc2")
COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
PRODUCT = re.compile(r" (?:convolution|dot)\(.*op_name=\"([^\"]*)\"")


def part_of(operation: str) -> str | None:
    """The part that a product belongs to, by what JAX called it: our scopes and formulas, and the modules of the Flax peer."""
    if "->bhts" in operation or "bhts," in operation or re.search(r"MultiHead.*(hqk|qhd)", operation):
        return "attention"
    if found := re.search(r"\b(qkv|out|fc1|fc2|query|key|value)\b", operation):
        return "qkv" if found[1] in ("query", "key", "value") else found[1]
    if found := re.search(r"Dense_(\d+)", operation):
        return "fc2" if int(found[1]) % 2 else "fc1"
    return None


def products_of(text: str) -> dict[str, set[str]]:
    """The parts whose products each computation holds, in itself or in those that it calls."""
    found: dict[str, set[str]] = {}
    called: dict[str, set[str]] = {}
    name = ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            name = head[1]
            found[name], called[name] = set(), set()
        elif name:
            called[name].update(re.findall(r"calls=%([^\s,]+)", line))
            if (product := PRODUCT.search(line)) and (part := part_of(product[1])):
                found[name].add(part)

    def within(name: str) -> set[str]:
        return found[name].union(*(within(other) for other in called[name] if other in found))

    return {name: within(name) for name in found}


def by_part(text: str) -> collections.Counter[str]:
    """Cycles of a compiled program by part; a fusion of several parts is a part of its own."""
    compiler.estimates(text)  # refuses absurd figures
    products, cycles = products_of(text), collections.Counter()
    for line in text.splitlines():
        if estimate := re.search(r'"estimated_cycles":"?(\d+)', line):
            inside = set().union(*(products.get(name, set()) for name in re.findall(r"calls=%([^\s,]+)", line)))
            if (alone := PRODUCT.search(line)) and (part := part_of(alone[1])):
                inside.add(part)
            cycles[" + ".join(part for part in PARTS if part in inside) or "between"] += int(estimate[1])
    return cycles


def at_peak(spec: EncoderSpec, rows: int, program: str, chip: str) -> dict[str, float]:
    """Cycles of each part's products at the matrix unit's peak; those of attention are always in bf16."""
    blocks, int8 = spec.image.blocks, compiler.CHIPS[chip][2]
    bf16 = int8 if chip == "v4" else int8 / 2  # a v4 multiplies integers no faster
    peak, width = int8 if program.startswith("int8") else bf16, rows * blocks.width
    mlp = 2 * width * blocks.mlp_width / peak
    return {
        "qkv": 6 * width * blocks.width / peak,
        "attention": 4 * rows * width / bf16,
        "out": 2 * width * blocks.width / peak,
        "fc1": mlp,
        "fc2": mlp,
    }


def compiled_text(spec: EncoderSpec, batch: int, program: str, topology: str, form: Form) -> str:
    function, weights = programs.program(spec, program, Scheme(), None, form)
    images = jax.ShapeDtypeStruct((batch, *spec.image.picture_shape), jnp.bfloat16)
    return compiler.compile_for(topology, function, weights, images).as_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--programs", nargs="+", choices=programs.PROGRAMS, default=["flax-bf16", "bf16", "int8"])
    parser.add_argument("--form", choices=("slot", "kept", "pairs"), help="attention, instead of what the chip has")
    parser.add_argument("--activation")
    parser.add_argument("--operations", type=int, default=0)
    given = parser.parse_args()
    spec, chip = catalog.get(given.name).spec, given.topology.split(":")[0]
    os.environ |= {"TPU_ACCELERATOR_TYPE": compiler.CHIPS[chip][0], "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ["TPU_WORKER_ID"] = "0"
    blocks = dataclasses.replace(spec.image.blocks, activation=given.activation or spec.image.blocks.activation)
    image = dataclasses.replace(spec.image, blocks=blocks, pooling="mean", projection=None)
    spec = dataclasses.replace(spec, image=image)
    for program in given.programs:
        form = form_for(chip, image, Scheme()) if program.startswith("int8") else PLAIN
        if given.form and program.startswith("int8"):
            form = dataclasses.replace(form, attention=given.form)
        two, three = (
            compiled_text(tpu.shallow(spec, number), given.batch, program, given.topology, form) for number in (2, 3)
        )
        cycles = by_part(three)
        cycles.subtract(by_part(two))
        peak = at_peak(spec, image.num_tokens, program, chip)
        print(f"{given.name} on {given.topology}, {given.batch} at once, {program}, {form.name}: cycles an image")
        for part in sorted(cycles, key=lambda part: -cycles[part]):
            bound = sum(peak[each] for each in part.split(" + ") if each in peak)
            print(f"{cycles[part] / given.batch:10,.0f}  at peak {bound:8,.0f}  {part}")
        print(f"{cycles.total() / given.batch:10,.0f}  at peak {sum(peak.values()):8,.0f}  a block", flush=True)
        lines = [(re.search(r'"estimated_cycles":"?(\d+)', line), line.strip()) for line in three.splitlines()]
        dearest = sorted(((int(found[1]), line) for found, line in lines if found), reverse=True)
        for estimate, line in dearest[: given.operations]:
            print(f"{estimate / given.batch:10,.0f} {line[:140]}")


if __name__ == "__main__":
    main()
