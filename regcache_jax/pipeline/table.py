"""The rows of the table: what stands under every scheme, and which part of the searched plan each row has in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.files.workdir import Json
from regcache_jax.registers.search.result import SearchResult
from regcache_jax.studies.recipes import RECIPES


class Kind(NamedTuple):
    """What a row does beyond its scheme's bits: by which recipe of `RECIPES`, and with which part of the plan in place
    (`registers` is all of it)."""

    recipe: str = "rtn"
    plan: str | None = None


KINDS = {
    "plain": Kind(),
    "registers": Kind(plan="registers"),
    "prefix-only": Kind(plan="prefix-only"),
    "delete-only": Kind(plan="delete-only"),
    "group": Kind("group"),
    "group+registers": Kind("group", "registers"),
    "percentile": Kind("percentile"),
    "percentile+registers": Kind("percentile", "registers"),
    "smoothquant": Kind("smoothquant"),
    "tensor": Kind("tensor"),
    "token": Kind("token"),
}
"""The rows that a config may ask for under every scheme."""

PLANS = ("registers", "prefix-only", "delete-only")


class TableRow(NamedTuple):
    """One row of the table: `float` or a quantised scheme, and a key of KINDS."""

    scheme: str
    kind: str

    @property
    def stage(self) -> str:
        """Its stage's name."""
        return f"evaluate_{self.scheme}_{self.kind}"

    @property
    def plan(self) -> str | None:
        """The part of the plan that it has in place, one of PLANS."""
        return KINDS[self.kind].plan

    @property
    def is_reference(self) -> bool:
        """Whether the others are compared with it: the float encoder without a plan."""
        return self == FLOAT

    @property
    def is_model(self) -> bool:
        """Whether its encoder is the one that a user takes away as a model folder."""
        return self.scheme != "float" and self.kind == "registers"

    def quantization(self, weights: str) -> Scheme | None:
        """Its scheme; None for float."""
        return Scheme.named(self.scheme, weights=weights, **RECIPES[KINDS[self.kind].recipe])


FLOAT = TableRow("float", "plain")


def table_rows(config: ConfigDict) -> Iterator[TableRow]:
    """Every row of a config's table, the reference first."""
    yield FLOAT
    yield TableRow("float", "registers")
    for scheme in config.schemes:
        for kind in config.rows:
            yield TableRow(scheme, kind)


def note(plan: str | None, found: Json, deleted: int) -> str | None:
    """What a reader must know of a row whose plan is not what its name promises. `deleted`: tokens that its encoder deletes."""
    numbers = found["numbers"]
    if plan == "delete-only" and deleted == 0:
        return "the full plan deletes nothing, and the search tried no deletion alone: the same as without a plan"
    if plan == "delete-only":
        deletes = numbers["delete_count"] > 0
        return None if deletes else "the full plan deletes nothing: the best deletion that the search tried alone"
    if not found["helps"]:
        return "the search found no plan that helps: the same as without one"
    if plan == "prefix-only" and numbers["delete_count"] == 0:
        return "the full plan deletes nothing: prefix only is the same plan"
    return None


def plan_file(name: str, kind: str) -> str:
    """Where the plan of a scheme lies in the work folder; `kind` is one of PLANS."""
    return f"plans/{name}-{kind}.safetensors"


def alternatives(result: SearchResult) -> dict[str, RegisterPlan]:
    """The plan of a search and its two halves. Where the full plan deletes nothing, delete-only is the best deletion that the
    search has tried alone."""
    plans = dict(zip(PLANS, (result.plan, result.plan.prefix_only(), result.plan.delete_only()), strict=True))
    alone = [
        row for row in result.trials
        if row["numbers"]["start"] == row["numbers"]["stop"] and row["numbers"]["delete_count"] > 0
    ]  # fmt: skip
    if alone and result.numbers.delete_count == 0:
        numbers = min(alone, key=lambda row: (-row["images"], row["error"]))["numbers"]
        chosen = {name: jnp.int32(numbers[name]) for name in ("start", "stop", "delete_block", "delete_count")}
        plans["delete-only"] = result.plan.replace(**chosen)
    return plans
