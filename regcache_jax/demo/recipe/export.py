"""From a trained state to a model folder: gain folded in, outliers amplified, weights rounded to float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.demo.recipe.circuit import rescale
from regcache_jax.demo.recipe.train import State, folded
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.models import folder as checkpoints

FACTOR = 48.0  # c: the size of the outliers at the inputs of the blocks after the circuit (docs/bundled_encoder.md)


def exported(state: State, spec: EncoderSpec, factor: float = FACTOR, hidden_factor: float = 1.0) -> Encoder:
    """The encoder that a finished state holds. The factors change how large its outliers are, not what it computes.

    Weights are float32 with float16's precision, so that they compress. Raises UserError if one does not fit float16."""
    params = folded(state)
    if int(state.dimensions[0]) >= 0:
        params = params.replace(image=rescale(params.image, state.circuit, factor, hidden_factor))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), params)
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(rounded)):
        raise UserError(f"a weight is not finite in float16; a factor below {factor} may help, or training diverged")
    return Encoder(rounded, spec=spec)


def export(
    folder: epath.PathLike,
    state: State,
    spec: EncoderSpec,
    *,
    factor: float = FACTOR,
    metadata: Mapping[str, Any] | None = None,
) -> epath.Path:
    """Writes the model folder. Raises UserError if it exists."""
    told = {
        "source": "regcache_jax.demo.recipe",
        "outliers": "planted and trained",
        "factor": factor,
        **(metadata or {}),
    }
    return checkpoints.save(folder, exported(state, spec, factor), metadata=told)
