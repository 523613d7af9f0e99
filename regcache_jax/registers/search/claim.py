"""What a plan is claimed to do: the error on pictures that no candidate, no scale and no score has seen, with its spread."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from regcache_jax.core.counted import counted
from regcache_jax.core.objective import Objective
from regcache_jax.core.outputs import Answers, Outputs, image_errors
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.calibrate import Ranges
from regcache_jax.registers.search.parts import make_draws
from regcache_jax.registers.search.trial import Trials


@dataclasses.dataclass(frozen=True)
class Claim:
    """An error on held-out pictures, calibrated on all the others.

    `spread`: its standard deviation, from drawing the calibration pictures again and from how much pictures differ; `worst`:
    the picture of the largest error."""

    error: float
    spread: float
    worst: float
    images: int

    def sentence(self) -> str:
        """The figures, in a few words."""
        return f"{self.error:.3g} +- {self.spread:.1g} on {counted(self.images, 'held-out picture')} (worst {self.worst:.3g})"


def claim_of(
    errors: Float[np.ndarray, "k"],
    redrawn: Sequence[Float[np.ndarray, "_"]] = (),
    others: Float[np.ndarray, "m"] | None = None,
) -> Claim:
    """A claim from each held-out picture's error with all calibration pictures, and from how far each draw of these moves the errors of
    its share of the held-out ones (`HeldOut.redrawn`).

    `others`: errors of pictures that the choice has seen, each under scales that it did not help to find. Only how much pictures differ is
    read off them as well: few pictures make most of an error, and a handful that are held out may be without any of these."""
    pictures = errors if others is None else np.concatenate([errors, others])
    variance = float(pictures.var(ddof=1)) / len(errors) if len(pictures) > 1 else 0.0
    variance += variance_of_draws(redrawn)
    return Claim(float(errors.mean()), math.sqrt(variance), float(errors.max()), len(errors))


def variance_of_draws(redrawn: Sequence[Float[np.ndarray, "_"]]) -> float:
    """The variance of an error that draws cause: that of the means of their shares, less what pictures alone make of it (one-way analysis
    of variance). Nothing for a single draw."""
    if len(redrawn) < 2:
        return 0.0
    alone = [float(moved.var(ddof=1)) / len(moved) for moved in redrawn if len(moved) > 1]
    between = float(np.var([moved.mean() for moved in redrawn], ddof=1))
    return max(0.0, between - sum(alone) / len(redrawn))


class HeldOut:
    """Held-out pictures beside trials that have not seen them, their float outputs, and (accuracy) their answers."""

    def __init__(
        self,
        trials: Trials,
        images: Float[np.ndarray, "k Y X 3"],
        nothing: RegisterPlan,
        answers: Answers | None = None,
    ) -> None:
        self.trials, self.images, self.answers = trials, images, answers
        self.reference: Outputs = trials.unseen_outputs(images, nothing, None)

    def errors(self, plan: RegisterPlan, scales: Ranges, share: slice = slice(None)) -> Float[np.ndarray, "k"]:
        """The error of each picture, or of each in a share of them, under some scales."""
        outputs = self.trials.unseen_outputs(self.images[share], plan, scales)
        answers = None if self.answers is None else self.answers.of(share)
        return image_errors(self.trials.objective, outputs, self.reference.of(share), answers)

    def redrawn(
        self, plan: RegisterPlan, scales: Sequence[Ranges], errors: Float[np.ndarray, "k"]
    ) -> list[Float[np.ndarray, "_"]]:
        """How far the scales of each draw move the errors of its share of the pictures from those under all scales: the pictures go round
        the draws, so that all draws together cost one run over them. Nothing where scales are measured as they pass."""
        drawn = list(scales)[: len(self.images)] if self.trials.scheme.calibrated else []
        shares = [slice(number, None, len(drawn)) for number in range(len(drawn))]
        return [self.errors(plan, own, share) - errors[share] for own, share in zip(drawn, shares, strict=True)]

    def moved(self, plan: RegisterPlan) -> float:
        """How far a plan alone, in float, moves the outputs; under accuracy, the features."""
        objective = "pooled" if self.trials.objective == "accuracy" else self.trials.objective
        return float(
            image_errors(objective, self.trials.unseen_outputs(self.images, plan, None), self.reference).mean()
        )


def measure(
    encoder: Encoder,
    working: Float[np.ndarray, "m Y X 3"],
    verifying: Float[np.ndarray, "k Y X 3"],
    scheme: Scheme,
    plan: RegisterPlan,
    *,
    objective: Objective = "pooled",
    answers: Answers | None = None,
) -> tuple[Claim, float]:
    """The claim of any plan, calibrated on some pictures and measured on others (`answers` are theirs); and how far the plan alone moves
    the outputs of the others."""
    entry = min(plan.schedule().begins, default=plan.num_blocks - 1)
    trials = Trials(
        encoder.with_plan(None),
        working,
        scheme.nearest(),
        (entry,),
        make_draws(len(working)),
        objective=objective,
    )
    held_out = HeldOut(trials, verifying, plan.prefix_only().delete_only(), answers)
    every, *drawn = trials.calibrated(plan)
    errors, seen = held_out.errors(plan, every), trials.errors(plan, drawn)
    return claim_of(errors, held_out.redrawn(plan, drawn, errors), seen), held_out.moved(plan)
