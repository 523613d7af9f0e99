"""What the tasks that know classes share: pictures without a class are left out and said, and what is counted is what is measured."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError, shown
from regcache_jax.evaluation.classes import Joined
from regcache_jax.evaluation.job import Found
from regcache_jax.evaluation.measure import Labelled, Measured, Scorer, measure
from regcache_jax.evaluation.rows import Rows


def classified(rows: Rows, labels: Int[np.ndarray, "n"], score: Scorer, reference: Measured | None) -> Found:
    """Accuracy on the pictures that have a class. Raises UserError where none has."""
    known = labels >= 0
    if not known.any():
        raise UserError("no picture has a class; a classification needs labelled pictures (one folder a class)")
    found = measure(Labelled(rows.features[known], labels[known]), score, reference)
    found = found._replace(places=rows.places[known])
    unknown = int((~known).sum())
    notes = [f"not counted, as without a class: {unknown:,} of {counted(len(known), 'picture')}"] if unknown else []
    return Found(found, int(known.sum()), rows.missing, notes)


def trained(found: Found, joined: Joined, voters: Rows) -> Found:
    """The same, with what is to be said of the training pictures."""
    notes = list(found.notes)
    if joined.untrained:
        notes.append(
            f"no training picture is of {shown(', '.join(joined.untrained))}: none of their pictures can be right"
        )
    if unknown := int((voters.labels < 0).sum()):
        notes.append(f"{unknown} of {len(voters.labels)} training pictures have no class and are left out")
    return found._replace(notes=notes, missing=[*voters.missing, *found.missing])


def for_all_classes(score: Scorer, joined: Joined) -> Scorer:
    """The same scores, and none (minus infinity) for the classes that have no training picture."""
    more = len(joined.untrained)

    def padded(features: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n C"]:
        return np.pad(score(features), ((0, 0), (0, more)), constant_values=-np.inf)

    return padded if more else score
