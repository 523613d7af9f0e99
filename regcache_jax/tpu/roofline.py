"""What a program that XLA compiled for a GPU does: its kernels, the bytes that each moves, its products, and the time these cannot
go below. Read from the optimised HLO; nothing is run.

A bound, no time: every kernel reads its inputs from memory and writes its outputs there (a cache would spare some), at the GPU's
peaks, and starting it costs nothing."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

from regcache_jax.core.errors import UserError
from regcache_jax.tpu.gpus import Gpu

BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
FREE = (
    "parameter",
    "constant",
    "bitcast",
    "get-tuple-element",
    "tuple",
    "iota",
    "after-all",
    "partition-id",
    "replica-id",
)
"""Instructions that are no kernels."""
OPAQUE = ("while", "conditional", "call", "async-start")
"""Instructions that run other computations, so often as nobody says."""
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)")


KINDS = ("int8 products", "float products", "attention", "behind int32 sums", "between")
"""What kernels do: `attention` is cuDNN's, a kernel `behind int32 sums` reads those that an integer product wrote, to scale them and go
on, and `between` are norms, roundings and copies."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO: its name, the arrays of its type (dtype, shape), what it does, to which others, and the rest of the line."""

    name: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    operation: str
    operands: tuple[str, ...]
    rest: str

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(BYTES.get(dtype, 0) * math.prod(shape) for dtype, shape in self.arrays)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What is started once: one of `KINDS`, bytes read and written, and of each product inside the dtype of its inputs and operations."""

    name: str
    kind: str
    moved: int
    products: tuple[tuple[str, float], ...]

    def seconds(self, gpu: Gpu) -> float:
        """The least time: that of its products, or of its bytes."""
        return max(self.moved / gpu.bandwidth, sum(operations / gpu.peak(dtype) for dtype, operations in self.products))


def kernels(text: str) -> list[Kernel]:
    """The kernels of a compiled program. Raises UserError for one with a loop, whose cost the text does not say."""
    computations, entry = _computations(text)
    known = {each.name: each for each in computations[entry]}
    found = []
    for each in computations[entry]:
        if each.operation in OPAQUE:
            raise UserError(f"the compiled program has a {each.operation}, whose cost nobody knows")
        if each.operation in FREE:
            continue
        body = computations[_called(each)] if each.operation == "fusion" else []
        place, part = _in_place(body) or (None, each.size)
        read = [
            _read(index, known[name], body)
            for index, name in enumerate(each.operands)
            if name in known and index != place
        ]
        is_library = each.operation == "custom-call"
        if is_library:  # the second array is the library's own room
            part = dataclasses.replace(each, arrays=each.arrays[:1]).size
        products = _library_products(each, known) if is_library else _products([*body, each])
        kind = _kind(each, products, [known[name] for name in each.operands if name in known])
        found.append(Kernel(each.name, kind, part + sum(read), products))
    return found


def _kind(each: Instruction, products: tuple[tuple[str, float], ...], read: list[Instruction]) -> str:
    """One of `KINDS`."""
    if "__cudnn$fmha" in each.rest:
        return "attention"
    if products:
        return "int8 products" if products[0][0] == "s8" else "float products"
    sums = any(dtype == "s32" and len(shape) > 1 for other in read for dtype, shape in other.arrays)
    return "behind int32 sums" if sums else "between"


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of every computation, and which is the entry."""
    found: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            current = head[2]
            entry = current if head[1] else entry
            found[current] = []
        elif current and (match := INSTRUCTION.match(line)):
            name, type_, operation, inside, rest = match.groups()
            arrays = tuple(
                (dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in ARRAY.findall(type_)
            )
            operands = tuple(re.findall(r"%([\w.\-]+)", inside)) if operation != "parameter" else (inside,)
            found[current].append(Instruction(name, arrays, operation, operands, rest))
    return found, entry


def _called(fusion: Instruction) -> str:
    match = re.search(r"calls=%([\w.\-]+)", fusion.rest)
    assert match is not None
    return match[1]


def _read(index: int, operand: Instruction, body: list[Instruction]) -> int:
    """Bytes that a kernel reads of one operand: of a fusion that only slices it, those slices."""
    inside = next(
        (each.name for each in body if each.operation == "parameter" and each.operands == (str(index),)), None
    )
    readers = [each for each in body if inside in each.operands]
    if readers and all(each.operation in ("slice", "dynamic-slice") for each in readers):
        return min(operand.size, sum(each.size for each in readers))
    return operand.size


def _in_place(body: list[Instruction]) -> tuple[int, int] | None:
    """The operand over which a fusion writes a part, which is in place, and the bytes of that part; None: it writes something new."""
    if not body or body[-1].operation != "dynamic-update-slice":
        return None
    known = {each.name: each for each in body}
    whole, part = (known[name] for name in body[-1].operands[:2])
    while whole.operation == "bitcast":
        whole = known[whole.operands[0]]
    return (int(whole.operands[0]), part.size) if whole.operation == "parameter" else None


def _products(body: list[Instruction]) -> tuple[tuple[str, float], ...]:
    """Products that a fusion holds, or that stand alone."""
    known = {each.name: each for each in body}
    return tuple(
        _product(each, known, r"lhs_contracting_dims=\{([\d,]+)\}") for each in body if each.operation == "dot"
    )


def _library_products(call: Instruction, known: dict[str, Instruction]) -> tuple[tuple[str, float], ...]:
    """Products of cuBLAS, one a call, and of cuDNN's attention, two."""
    if "$matmul" in call.rest or "__cublas$" in call.rest:
        return (_product(call, known, r'"lhs_contracting_dimensions":\["([\d",]+)"\]'),)
    if "__cudnn$fmha" in call.rest:
        (dtype, (batch, queries, heads, channels)), (_, keys) = (known[name].arrays[0] for name in call.operands[:2])
        return ((dtype, 2.0 * batch * heads * queries * keys[1] * channels),) * 2
    return ()


def _product(each: Instruction, known: dict[str, Instruction], contracted: str) -> tuple[str, float]:
    match = re.search(contracted, each.rest)
    assert match is not None
    dtype, shape = known[each.operands[0]].arrays[0]
    depth = math.prod(shape[int(axis)] for axis in match[1].replace('"', "").split(","))
    return dtype, 2.0 * depth * math.prod(each.arrays[0][1])


def counted(found: list[Kernel]) -> dict[str, int]:
    """How many products there are, by the dtype of their inputs."""
    return dict(collections.Counter(dtype for kernel in found for dtype, _ in kernel.products))


def by_kind(found: list[Kernel], gpu: Gpu) -> dict[str, dict[str, float]]:
    """Of each kind that is there: how many kernels, the bytes that they move, and the seconds that these cannot go below."""
    groups = {kind: [kernel for kernel in found if kernel.kind == kind] for kind in KINDS}
    return {
        kind: {
            "kernels": len(group),
            "bytes": sum(kernel.moved for kernel in group),
            "seconds": sum(kernel.seconds(gpu) for kernel in group),
        }
        for kind, group in groups.items()
        if group
    }
