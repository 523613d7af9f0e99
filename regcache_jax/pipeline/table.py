"""The rows of the table: cells of the grid by the names that a config and the report give them."""

from __future__ import annotations

from collections.abc import Iterator

from regcache_jax.files.workdir import Json
from regcache_jax.pipeline.config import RunConfig
from regcache_jax.studies.cells import Cell, PlanKind

KINDS: dict[str, tuple[str, PlanKind | None]] = {
    "plain": ("rtn", None),
    "registers": ("rtn", "registers"),
    "prefix-only": ("rtn", "prefix-only"),
    "delete-only": ("rtn", "delete-only"),
    "group": ("group", None),
    "group+registers": ("group", "registers"),
    "percentile": ("percentile", None),
    "percentile+registers": ("percentile", "registers"),
    "smoothquant": ("smoothquant", None),
    "strong": ("strong", None),
    "tensor": ("tensor", None),
    "token": ("token", None),
}
"""The rows that a config may ask for under every scheme: a recipe of `RECIPES`, and the part of the plan in place."""

FLOAT = Cell("float")
"""The reference: the others are compared with it."""


def table_cells(config: RunConfig) -> Iterator[Cell]:
    """Every row of a config's table, the reference first."""
    yield FLOAT
    yield Cell("float", plan="registers")
    for scheme in config.schemes:
        for kind in config.rows:
            yield Cell(scheme, *KINDS[kind])


def kind_of(cell: Cell) -> str:
    """The key of KINDS that a cell stands under."""
    return next(kind for kind, parts in KINDS.items() if parts == (cell.recipe, cell.plan))


def is_model(cell: Cell) -> bool:
    """Whether its encoder is the one that a user takes away as a model folder."""
    return cell.bits != "float" and cell == model_cell(cell.bits)


def model_cell(scheme: str) -> Cell:
    """The cell whose encoder a user takes away as a model folder."""
    return Cell(scheme, plan="registers")


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
