"""Register plans that a work folder keeps: searched once for an encoder, pictures, scheme and settings, found again for the same."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.files.identity import content_hash
from regcache_jax.files.workdir import Json, Stage, Workdir
from regcache_jax.models.plan_file import load_plan, save_plan
from regcache_jax.registers.search.result import SearchResult, describe_plan
from regcache_jax.registers.search.search import search
from regcache_jax.studies.cells import Images, PlanKind
from regcache_jax.studies.recipes import scheme_of

KINDS: tuple[PlanKind, ...] = typing.get_args(PlanKind)


@dataclasses.dataclass(frozen=True)
class PlanSearch:
    """What a plan is searched with. `identity` tells this encoder and these pictures from others; `source` says in the plan's metadata
    which pictures they are."""

    encoder: Encoder
    images: Callable[[], Images]
    scheme: Scheme
    config: SearchConfig
    identity: Sequence[object]
    source: Json

    @property
    def made_from(self) -> list[object]:
        """All that the plan depends on."""
        return [*self.identity, self.scheme.to_json(), self.config.to_json()]


def find_plan(workdir: Workdir, name: str, wanted: PlanSearch) -> Stage:
    """Searches a plan, or finds it again: `plans/NAME-registers.safetensors`, its halves beside it, and the trial table, by which a
    search that was killed goes on. What was made from other things is searched anew."""
    table = workdir.path / "plans" / f"{name}-{workdir.digest(f'search_{name}', wanted.made_from)}.jsonl"

    def make() -> Json:
        encoder, scheme, config = wanted.encoder, wanted.scheme, wanted.config
        result = search(encoder, wanted.images(), scheme, config, table=table, progress=workdir.observer.moved)
        metadata = describe_plan(result, encoder, scheme, config, wanted.source)
        for kind, plan in alternatives(result).items():
            save_plan(workdir.path / plan_file(name, kind), plan, {**metadata, "kind": kind})
        return {**result.to_json(), "trials": result.trials}

    return workdir.stage(f"search_{name}", wanted.made_from, make, [plan_file(name, kind) for kind in KINDS])


def find_plans(
    encoder: Encoder, images: Images, bits: Sequence[str], workdir: Workdir, config: SearchConfig | None = None
) -> dict[str, RegisterPlan]:
    """The plan for each number of bits, searched under round-to-nearest; none where registers gain nothing."""
    identity, plans = [encoder_hash(encoder), content_hash(images)], {}
    for each in bits:
        scheme = scheme_of("rtn", each)
        source = {"images": len(images)}
        find_plan(
            workdir, each, PlanSearch(encoder, lambda: images, scheme, config or SearchConfig(), identity, source)
        )
        plan, _ = load_plan(workdir.path / plan_file(each, "registers"))
        if plan.has_registers or plan.schedule().delete_count:
            plans[each] = plan
    return plans


def plan_file(name: str, kind: str) -> str:
    """Where a plan lies in the work folder; `kind` is one of KINDS."""
    return f"plans/{name}-{kind}.safetensors"


def alternatives(result: SearchResult) -> dict[PlanKind, RegisterPlan]:
    """The plan of a search and its two halves. Where the full plan deletes nothing, delete-only is the best deletion that the
    search has tried alone."""
    plans = dict(zip(KINDS, (result.plan, result.plan.prefix_only(), result.plan.delete_only()), strict=True))
    alone = [
        row for row in result.trials
        if row["numbers"]["start"] == row["numbers"]["stop"] and row["numbers"]["delete_count"] > 0
    ]  # fmt: skip
    if alone and result.numbers.delete_count == 0:
        numbers = min(alone, key=lambda row: (-row["images"], row["error"]))["numbers"]
        chosen = {name: jnp.int32(numbers[name]) for name in ("start", "stop", "delete_block", "delete_count")}
        plans["delete-only"] = result.plan.replace(**chosen)
    return plans
