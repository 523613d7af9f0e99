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


def claim_of(errors: list[Float[np.ndarray, "k"]], others: Float[np.ndarray, "m"] | None = None) -> Claim:
    """A claim from each held-out picture's error: with all calibration pictures first, then under each draw of them.

    `others`: errors of pictures that the choice has seen, each under scales that it did not help to find. Only how much pictures differ is
    read off them as well: few pictures make most of an error, and a handful that are held out may be without any of these."""
    every, *drawn = errors
    pictures = every if others is None else np.concatenate([every, others])
    variance = float(pictures.var(ddof=1)) / len(every) if len(pictures) > 1 else 0.0
    variance += float(np.var([one.mean() for one in drawn], ddof=1)) if len(drawn) > 1 else 0.0
    return Claim(float(every.mean()), math.sqrt(variance), float(every.max()), len(every))


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

    def _errors(self, plan: RegisterPlan, scales: Ranges) -> Float[np.ndarray, "k"]:
        outputs = self.trials.unseen_outputs(self.images, plan, scales)
        return image_errors(self.trials.objective, outputs, self.reference, self.answers)

    def errors(self, plan: RegisterPlan, scales: Sequence[Ranges]) -> list[Float[np.ndarray, "k"]]:
        """Each picture's error under each of some scales (`Trials.calibrated`: of all pictures of the trials, then of each draw)."""
        return [self._errors(plan, own) for own in (scales if self.trials.scheme.calibrated else [{}])]

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
    scales = trials.calibrated(plan)
    seen = trials.errors(plan, scales[1:])
    return claim_of(held_out.errors(plan, scales), seen), held_out.moved(plan)
