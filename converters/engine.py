"""The one engine behind every converter: a table of names in, a parameter tree out, and back again.

A table is a tuple of `Rule`s: their name, our path (see `regcache_jax.core.spec`), and how the axes are arranged. Their
name may hold one `*`, the number of the block; our block parameters are stacked on a leading axis. Where `ours` is a tuple,
their tensor holds several of ours, one after the other along its first axis (a packed query-key-value) or that of the rule; None stands
for a part that must be zero (DINOv3's key bias).

Nothing is read before every name and every shape is right, and one message lists all that is wrong: names that are missing,
names nobody asked for, parameters of ours that no rule fills, wrong shapes, values that are not finite.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from regcache_jax.core.errors import UserError

Shape = tuple[int, ...]
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read: `read()` gives the array, `file` is named in messages."""

    shape: Shape
    dtype: np.dtype
    file: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How their axes relate to ours: the shape theirs must have, and the way there and back."""

    their_shape: Callable[[Shape], Shape]
    to_ours: Callable[[np.ndarray, Shape], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


keep = Arrangement(lambda ours: ours, lambda array, ours: array.reshape(ours), lambda array: array)
one_in_front = Arrangement(lambda ours: (1, *ours), keep.to_ours, lambda array: array[None])
two_in_front = Arrangement(lambda ours: (1, 1, *ours), keep.to_ours, lambda array: array[None, None])
# [H * K] <-> [H, K]
flat = Arrangement(lambda ours: (int(np.prod(ours)),), keep.to_ours, lambda array: array.reshape(-1))
# [out, in] <-> [in, *out]: torch's Linear, and its query, key and value projections with heads inside `out`
out_in_to_in_out = Arrangement(
    lambda ours: (int(np.prod(ours[1:])), ours[0]),
    lambda array, ours: array.T.reshape(ours),
    lambda array: array.reshape(len(array), -1).T,
)
# [D, H * K] <-> [H, K, D]: torch's output projection of attention
out_heads_to_heads_out = Arrangement(
    lambda ours: (ours[-1], int(np.prod(ours[:-1]))),
    lambda array, ours: array.T.reshape(ours),
    lambda array: array.reshape(-1, array.shape[-1]).T,
)
# [D, 3, P, P] <-> [P, P, 3, D]: torch's convolution
oihw_to_hwio = Arrangement(
    lambda ours: (ours[3], ours[2], ours[0], ours[1]),
    lambda array, ours: array.transpose(2, 3, 1, 0),
    lambda array: array.transpose(3, 2, 0, 1),
)
# [D] <-> [1, D], and [R, D] as it is: rows of one table
rows = Arrangement(lambda ours: (1, *ours)[-2:], keep.to_ours, lambda array: array.reshape(-1, array.shape[-1]))
# [D, 3 * P * P] <-> [P, P, 3, D]: a convolution's kernel as that of a linear layer
flat_oihw_to_hwio = Arrangement(
    lambda ours: (ours[3], ours[2] * ours[0] * ours[1]),
    lambda array, ours: array.reshape(ours[3], ours[2], *ours[:2]).transpose(2, 3, 1, 0),
    lambda array: array.transpose(3, 2, 0, 1).reshape(array.shape[3], -1),
)
# [in, H * K] <-> [in, H, K] and [H * K, out] <-> [H, K, out]: Flax's Dense around heads
in_out_to_heads = Arrangement(
    lambda ours: (ours[0], int(np.prod(ours[1:]))), keep.to_ours, lambda array: array.reshape(len(array), -1)
)
heads_in_to_heads = Arrangement(
    lambda ours: (int(np.prod(ours[:-1])), ours[-1]),
    keep.to_ours,
    lambda array: array.reshape(-1, array.shape[-1]),
)
# [1, N, D] <-> [1 + N, D]: a position table without a row for the class token, which then has position zero
without_class_row = Arrangement(
    lambda ours: (1, ours[0] - 1, ours[1]),
    lambda array, ours: np.concatenate([np.zeros((1, ours[1]), array.dtype), array.reshape(ours[0] - 1, ours[1])]),
    lambda array: array[None, 1:],
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table. The first rule that names one of our paths has the published spelling; later ones are other
    spellings of the same parameter, used where the file has them. `beside`: another path, without which the rule does not hold (the
    gate, whose layers some libraries name otherwise)."""

    theirs: str
    ours: str | tuple[str | None, ...]
    arrangement: Arrangement = keep
    beside: str = ""
    axis: int = 0

    @property
    def parts(self) -> tuple[str | None, ...]:
        """What their tensor holds, one after the other, also where there is one."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def paths(self) -> tuple[str, ...]:
        """Our paths among the parts."""
        return tuple(path for path in self.parts if path is not None)


@dataclasses.dataclass(frozen=True)
class _Step:
    """One of their tensors and where it goes: our paths, and the block (None: not one of a stack)."""

    theirs: str
    rule: Rule
    block: int | None

    def our_shape(self, path: str | None, shapes: Mapping[str, Shape]) -> Shape:
        """The shape of a part; one that must be zero is as the first."""
        shape = shapes[path or self.rule.paths[0]]
        return shape if self.block is None else shape[1:]

    def lengths(self, shapes: Mapping[str, Shape]) -> list[int]:
        """How much of their tensor's axis each part takes."""
        parts = (self.rule.arrangement.their_shape(self.our_shape(path, shapes)) for path in self.rule.parts)
        return [(part or (1,))[self.rule.axis] for part in parts]

    def their_shape(self, shapes: Mapping[str, Shape]) -> Shape:
        shape = list(self.rule.arrangement.their_shape(self.our_shape(None, shapes)) or (1,))
        shape[self.rule.axis] = sum(self.lengths(shapes))
        return tuple(shape)


def assemble(
    tensors: Mapping[str, StoredTensor],
    rules: Iterable[Rule],
    shapes: Mapping[str, Shape],
    *,
    ignored: Iterable[str] = (),
    dtype: DTypeLike = np.float32,
    what: str = "the checkpoint",
) -> Tree:
    """Reads their tensors into our tree, one at a time, so that little more than the tree is ever in memory.

    `shapes` says what our tree must hold (path -> shape); rules for other paths are left out, so one table
    serves every variant of a family. `ignored` are patterns of names that carry nothing we use. Scalars stay float32.
    Raises UserError that lists every fault.
    """
    steps, holes = _plan(rules, shapes, tensors.keys())
    _check_names_and_shapes(tensors, steps, holes, shapes, tuple(ignored), what)
    flat_tree = {path: np.empty(shape, dtype if shape else np.float32) for path, shape in shapes.items()}
    not_finite, not_zero = [], []
    for step in steps:
        stored = tensors[step.theirs].read()
        with np.errstate(over="ignore", invalid="ignore"):  # what float64 alone can hold becomes infinite, and is named
            array = stored if stored.dtype == np.float16 else stored.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            not_finite.append(f"{step.theirs} ({tensors[step.theirs].file})")
            continue
        array = array.reshape(step.their_shape(shapes))
        parts = np.split(array, np.cumsum(step.lengths(shapes))[:-1], axis=step.rule.axis)
        for path, part in zip(step.rule.parts, parts, strict=True):
            if path is None:
                not_zero += [step.theirs] if np.any(part) else []
                continue
            target = flat_tree[path] if step.block is None else flat_tree[path][step.block]
            target[...] = step.rule.arrangement.to_ours(part, step.our_shape(path, shapes))
    if not_finite:
        raise UserError(
            f"{what} holds values that are not finite (NaN, infinite, or beyond float32): {_names(not_finite)}"
        )
    if not_zero:
        raise UserError(f"{what} holds a bias where its family has none: {_names(not_zero)}")
    return unflatten_dict(flat_tree, sep="/")


def disassemble(tree: Tree, rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """The inverse of `assemble`: our tree as their tensors, names included. Of several spellings the first is written."""
    arrays = {path: np.asarray(array) for path, array in flatten_dict(tree, sep="/").items()}
    shapes = {path: array.shape for path, array in arrays.items()}
    steps, holes = _plan(rules, shapes, ())
    if holes:
        raise UserError(f"these parameters have no name in the layout asked for: {_names(holes)}")
    written = {}
    for step in steps:
        ours = {path: arrays[path] if step.block is None else arrays[path][step.block] for path in step.rule.paths}
        nothing = np.zeros_like(ours[step.rule.paths[0]])
        parts = [nothing if path is None else ours[path] for path in step.rule.parts]
        theirs = [step.rule.arrangement.to_theirs(array) for array in parts]
        written[step.theirs] = np.ascontiguousarray(
            theirs[0] if len(theirs) == 1 else np.concatenate(theirs, axis=step.rule.axis)
        )
    return written


def _plan(rules: Iterable[Rule], shapes: Mapping[str, Shape], names: Iterable[str]) -> tuple[list[_Step], list[str]]:
    """The tensors to read, and our paths that no rule fills. Of several spellings of a parameter the one that occurs is taken."""
    names = frozenset(names)
    asked = [rule for rule in rules if all(path in shapes for path in (*rule.paths, rule.beside) if path)]
    expanded = [(rule, list(_steps(rule, shapes))) for rule in asked]
    occurring = [(rule, steps) for rule, steps in expanded if any(step.theirs in names for step in steps)]
    filled: set[str] = set()
    chosen: list[_Step] = []
    for rule, steps in [*occurring, *expanded]:
        if filled.isdisjoint(rule.paths):
            filled.update(rule.paths)
            chosen.extend(steps)
    return chosen, sorted(set(shapes) - filled)


def _steps(rule: Rule, shapes: Mapping[str, Shape]) -> Iterator[_Step]:
    if "*" not in rule.theirs:
        yield _Step(rule.theirs, rule, None)
        return
    for block in range(shapes[rule.paths[0]][0]):
        yield _Step(rule.theirs.replace("*", str(block)), rule, block)


def _check_names_and_shapes(
    tensors: Mapping[str, StoredTensor],
    steps: list[_Step],
    holes: list[str],
    shapes: Mapping[str, Shape],
    ignored: tuple[str, ...],
    what: str,
) -> None:
    """Raises UserError with every fault that can be seen without reading a tensor. Axes of length one do not count."""
    expected = {step.theirs: step for step in steps}
    missing = [name for name in expected if name not in tensors]
    left_over = [
        name
        for name in tensors
        if name not in expected and not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)
    ]
    wrong = []
    for name, step in expected.items():
        wanted = step.their_shape(shapes)
        if name in tensors and _squeeze(tensors[name].shape) != _squeeze(wanted):
            wrong.append(f"{name} is {list(tensors[name].shape)}, expected {list(wanted)}")
        elif name in tensors and tensors[name].dtype.kind not in "fV":
            wrong.append(f"{name} holds {tensors[name].dtype}, expected floating point")
    faults = [
        f"{label}: {_names(names)}"
        for label, names in (
            ("missing", missing),
            ("not known", left_over),
            ("wrong shape or type", wrong),
            ("not filled by any tensor", holes),
        )
        if names
    ]
    if faults:
        raise UserError(f"{what} does not fit: {'; '.join(faults)}")


def _squeeze(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _names(names: list[str], shown: int = 12) -> str:
    """The names, the first dozen spelt out."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} ({', '.join(names[:shown])}{rest})"
