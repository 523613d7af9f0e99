"""Register plans for a comparison: one for each number of bits, searched under round-to-nearest and kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from etils import epath
from jaxtyping import Float
from numpy import ndarray

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.files.identity import content_hash
from regcache_jax.models.plan_file import load_plan, save_plan
from regcache_jax.registers.search.search import describe_plan, search
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
    """The plan for each number of bits; none where registers gain nothing. What is in `out` already is not searched again.

    Raises UserError for a plan in `out` that was found on another encoder, on other images or with other settings."""
    folder, plans, config = epath.Path(out), {}, config or SearchConfig()
    reference = {"images": len(images), "sha256": content_hash(images)}
    for each in bits:
        path, scheme = folder / f"plan-{each}.safetensors", scheme_of("rtn", each)
        made_from = {
            "encoder_hash": encoder_hash(encoder),
            "reference": reference,
            "scheme": scheme.to_json(),
            "search": config.settings(),
        }
        if not path.exists():
            table = folder / f"search-{each}.jsonl"
            result = search(encoder, images, scheme, config, table=table, progress=progress)
            save_plan(path, result.plan, describe_plan(result, encoder, scheme, config, reference))
        plan, metadata = load_plan(path)
        if differs := [
            name for name, value in json.loads(json.dumps(made_from)).items() if metadata.get(name) != value
        ]:
            raise UserError(
                f"{path} is the plan of another search (its {', '.join(differs)} differ); choose another folder"
            )
        if plan.has_registers or plan.schedule().delete_count:
            plans[each] = plan
    return plans
