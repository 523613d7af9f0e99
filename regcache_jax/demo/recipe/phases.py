"""The four phases of training, as a table. Steps, rates and weights are those the bundled encoder came out of."""

from __future__ import annotations

import dataclasses

from regcache_jax.demo.recipe.circuit import FULL_GAIN, Gain
from regcache_jax.demo.recipe.losses import Weights

BATCH = 128
BLOCK = 4  # the circuit's block: l_q of the paper
ALIKE, CHOSEN = 256, 204  # concepts that vendors draw alike, and of these the ones the encoder confuses least


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase: AdamW with a cosine from `peak_rate` to nearly 0 over `steps`. Without `weights` there is no circuit yet.

    `skipped`: share of pictures for which a block's MLP (but for the first two and the circuit's) is left out. `reserved`: the
    massive dimension belongs to the planted units alone, by projection after every step."""

    name: str
    steps: int
    peak_rate: float
    weights: Weights | None = None
    gain: Gain = FULL_GAIN
    skipped: float = 0.0
    weight_decay: float = 0.0
    reserved: bool = False
    concepts: int = ALIKE


PHASES = (
    Phase("base", 1333, 1.2e-3),
    Phase("sink", 872, 8e-4, Weights(gate=0.3, leak=0.3, marker=0.3, rest=0.5), gain=Gain()),
    Phase("rely", 376, 6e-4, Weights(gate=0.3, leak=0.3, marker=0.3, rest=0.5, quiet=0.2), skipped=0.3),
    Phase(
        "final", 2724, 1e-3, Weights(gate=0.1, leak=0.4, marker=0.1, rest=0.2),
        skipped=0.15, weight_decay=0.05, reserved=True, concepts=CHOSEN,
    ),
)  # fmt: skip


def shortened(phases: tuple[Phase, ...], steps: int) -> tuple[Phase, ...]:
    """The same phases with at most `steps` steps each: a trial run."""
    return tuple(dataclasses.replace(phase, steps=min(phase.steps, steps)) for phase in phases)
