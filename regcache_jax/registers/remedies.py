"""Remedies tried on a few pictures, each as the encoder that it makes: what scales of their own, another method, or registers leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from regcache_jax.core.objective import Objective, reads_patches
from regcache_jax.core.outputs import Outputs, image_errors
from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.core.progress import Progress
from regcache_jax.core.scheme import Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.candidates import find_candidates, registers_from
from regcache_jax.registers.inspect import Profile
from regcache_jax.registers.kinds import OUTLIERS, standings
from regcache_jax.registers.outputs import outputs_of

COPIES = 6.0
"""Of a register that no search has looked for."""

GROUP, TOKEN, SMOOTH, UNSEARCHED = "scales by token group", "a scale a token", "SmoothQuant", "registers (not searched)"
OPTIONS = {
    GROUP: "`--activations group`",
    TOKEN: "`--activations token`, measured as it runs",
    SMOOTH: "`--method smoothquant`",
    UNSEARCHED: "`regcache search` finds better ones",
}
"""How each remedy is asked for."""


def advised(remedies: Mapping[str, float], plain: float) -> str | None:
    """Which of the remedies that were tried leaves least of a plain error; where that measures scales as it runs, also which of those
    that do not. None where none was tried."""
    if not remedies:
        return None
    helping = sorted((error, name) for name, error in remedies.items() if error < plain)
    if not helping:
        return "none of the remedies that were tried takes anything away"
    static = [pair for pair in helping if pair[1] != TOKEN]
    shown = helping[:1] if helping[0][1] != TOKEN else [helping[0], *static[:1]]
    least = [f"{name} ({OPTIONS[name]}) leaves {error:.3g}" for error, name in shown]
    return "of the remedies that were tried, " + ", the best with fixed scales: ".join(least)


def unsearched(encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], start: int) -> RegisterPlan:
    """A register from one patch a picture on average, from one block on to the last."""
    found = registers_from(find_candidates(encoder, images, [start], count=len(images), batch_size=len(images)), 0)
    return make_plan(found.key, found.value, copies=COPIES, start=start)


def remedies_for(
    encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], scheme: Scheme, profile: Profile
) -> Iterator[tuple[str, Scheme, RegisterPlan | None]]:
    """What there is to try: each remedy's name, scheme and plan."""
    plain = scheme.plain
    if encoder.spec.image.num_protected:
        yield GROUP, dataclasses.replace(plain, activations="group"), None
    yield TOKEN, dataclasses.replace(plain, activations="token"), None
    yield SMOOTH, dataclasses.replace(plain, method="smoothquant"), None
    if standings(profile)[OUTLIERS[0]].is_noticed:
        yield UNSEARCHED, plain, unsearched(encoder, images, profile.sensitive_block)


def try_remedies(
    encoder: Encoder,
    images: Float[np.ndarray, "n Y X 3"],
    scheme: Scheme,
    profile: Profile,
    *,
    objective: Objective = "pooled",
    progress: Progress | None = None,
) -> dict[str, float]:
    """The mean error that each leaves, calibrated and measured on the same pictures."""
    encoder = encoder.with_plan(None)
    objective = "pooled" if objective == "accuracy" else objective

    def outputs(made: Encoder) -> Outputs:
        return outputs_of(made, images, len(images), patches=reads_patches(objective))

    exact, errors = outputs(encoder), {}
    tried = list(remedies_for(encoder, images, scheme, profile))
    for number, (name, own, plan) in enumerate(tried):
        if progress is not None:
            progress(number, len(tried), name)
        made = quantize(encoder, images if own.needs_images else None, own, plan)
        errors[name] = float(image_errors(objective, outputs(made), exact).mean())
    return errors
