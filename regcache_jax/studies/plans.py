"""Register plans for a comparison: one for each number of bits, searched under round-to-nearest and kept in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etils import epath
from jaxtyping import Float
from numpy import ndarray

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.models.plan_file import load_plan, save_plan
from regcache_jax.registers.search.result import describe_plan
from regcache_jax.registers.search.search import search
from regcache_jax.registers.search.space import SearchConfig
from regcache_jax.studies.recipes import scheme_of


def find_plans(
    encoder: Encoder,
    images: Float[ndarray, "n Y X 3"],
    bits: Sequence[str],
    out: epath.PathLike,
    config: SearchConfig | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, RegisterPlan]:
    """The plan for each number of bits; none where registers gain nothing. What is in `out` already is not searched again."""
    folder, plans = epath.Path(out), {}
    for each in bits:
        path = folder / f"plan-{each}.safetensors"
        if not path.exists():
            table = folder / f"search-{each}.jsonl"
            scheme, config = scheme_of("rtn", each), config or SearchConfig()
            result = search(encoder, images, scheme, config, table=table, progress=progress)
            save_plan(path, result.plan, describe_plan(result, encoder, scheme, config, {"images": len(images)}))
        plan, _ = load_plan(path)
        if plan.has_registers or plan.schedule().delete_count:
            plans[each] = plan
    return plans
