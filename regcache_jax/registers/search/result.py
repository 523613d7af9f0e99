"""What a search answers: the plan, what is claimed of it on held-out pictures, and what goes into the plan's file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Float

from regcache_jax.core.counted import counted
from regcache_jax.core.objective import reads_patches
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.files.identity import Digest, sha256
from regcache_jax.registers.search.claim import Claim
from regcache_jax.registers.search.parts import Parts
from regcache_jax.registers.search.space import Numbers


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The plan (which may do nothing), what it does to pictures that the search has not seen, and what the search cost.

    `claim` and `baseline`: errors with the plan and without any on the pictures that verify. `jitter`: standard error of the gain
    over the draws; a plan is kept only if it gains more than twice that, and on the pictures that verify as well. `bound`: what the
    choice went by. `spare`: the share of its copies that a plan could lose before a sink came back in any picture seen. `moved`:
    how far the plan alone, in float, moves what the objective reads; `moved_by_deletion`: the part of it that is gone without the
    deletion. `calibration`: what it was judged with, which `quantize` takes up.
    `complete` is False where a budget ended the search."""

    plan: RegisterPlan
    numbers: Numbers
    helps: bool
    claim: Claim
    baseline: Claim
    bound: float
    jitter: float
    spare: float
    moved: float
    moved_by_deletion: float
    objective: str
    sensitive_block: int
    parts: Parts
    calibration: dict[str, Any]
    trials: list[dict[str, Any]]
    block_flops: int
    seconds: float
    compilations: int
    complete: bool

    @property
    def error(self) -> float:
        """The held-out error with the plan."""
        return self.claim.error

    @property
    def baseline_error(self) -> float:
        """The held-out error without a plan."""
        return self.baseline.error

    @property
    def gain(self) -> float:
        """The part of the error without a plan that the plan takes away."""
        return 1.0 - self.error / self.baseline_error if self.baseline_error > 0 else 0.0

    def sentence(self) -> str:
        """The verdict in one line."""
        figures = f"error {self.baseline_error:.3g} -> {self.claim.sentence()}"
        ended = "" if self.complete else "; the budget ended the search early"
        if not self.helps and not self.complete:
            return f"no plan that helps was found before the budget ended the search: {figures}"
        if not self.helps:
            return f"registers gain nothing here: {figures}; use the scheme without a plan"
        return f"registers take away {self.gain:.1%} of the quantisation error: {figures}{ended}"

    def remarks(self) -> list[str]:
        """What else a reader must know, a line each."""
        if not self.helps:
            return []
        said = []
        if self.objective != "accuracy" and (remark := moved_more(self.moved, self.error, self.objective)):
            said.append(remark)
        if self.numbers.delete_count and reads_patches(self.objective):
            said.append(
                f"deleting {counted(self.numbers.delete_count, 'patch')} (their places are filled in) moves the outputs, in float, by "
                f"{self.moved_by_deletion:.3g} of these {self.moved:.3g}"
            )
        if self.numbers.stop > self.numbers.start and self.spare < 0.2:
            said.append(
                f"the plan holds narrowly: with {max(0.1, self.spare + 0.1):.0%} fewer copies sinks come back in a picture seen; "
                "search on more pictures"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Everything but the plan's arrays, the numbers of the pictures and the trial table."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("plan", "parts", "trials"):
            del named[name]
        return {
            **named,
            "numbers": dataclasses.asdict(self.numbers),
            "claim": dataclasses.asdict(self.claim),
            "baseline": dataclasses.asdict(self.baseline),
            "error": self.error,
            "baseline_error": self.baseline_error,
            "gain": self.gain,
            "sentence": self.sentence(),
            "remarks": self.remarks(),
        }


def moved_more(moved: float, error: float, objective: str) -> str | None:
    """A remark where a plan alone, in float, moves what is read further than the integers add to it."""
    if moved <= error - moved:
        return None
    what = {"pooled": "features", "patches": "patch tokens", "both": "features and patch tokens"}.get(
        objective, "outputs"
    )
    return (
        f"the plan alone, in float, moves the {what} by {moved:.3g} of the error of {error:.3g}: more than the integers do; "
        "more bits would gain little, refining the plan (--refine) may"
    )


def judged_with(
    parts: Parts, images: Float[np.ndarray, "n Y X 3"], scheme: Scheme, config: SearchConfig
) -> dict[str, Any]:
    """The calibration that a plan was judged with: how many pictures, how they were split off, and what they are known by."""
    return {
        "images": len(parts.working),
        "held_out": len(parts.verifying),
        "verify_share": config.verify_share,
        "seed": config.seed,
        "draws": config.draws,
        "estimator": scheme.estimator,
        "hash": pictures_hash(images[parts.working]),
    }


def pictures_hash(images: Float[np.ndarray, "n Y X 3"]) -> str:
    """What some preprocessed pictures are known by, in any order."""
    return sha256("".join(sorted(Digest().arrays([np.asarray(image, np.float32)]).hex() for image in images)).encode())


def describe_plan(
    result: SearchResult,
    encoder: Encoder,
    scheme: Scheme,
    config: SearchConfig,
    reference: Mapping[str, Any],
) -> dict[str, Any]:
    """The metadata of a plan's file: encoder and its hash, reference set, the calibration that it was judged with, scheme, objective,
    versions, and the search's figures.

    `reference` says which pictures they were (JSON values). Nothing in it depends on the clock or on a kill, so a search that
    went on writes the same bytes."""
    figures = {name: value for name, value in result.to_json().items() if name not in ("seconds", "compilations")}
    return {
        "encoder": encoder.spec.name,
        "encoder_hash": encoder_hash(encoder),
        "reference": dict(reference),
        "scheme": scheme.to_json(),
        "search": config.settings(),
        "versions": {name: version(name) for name in ("regcache-jax", "jax", "numpy")},
        **figures,
    }
