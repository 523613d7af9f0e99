"""How much of a planted truth the engine recovers: the block, the tokens, the direction, and the features after int8."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.inspect import inspect
from regcache_jax.registers.search.result import SearchResult
from regcache_jax.registers.search.search import search
from regcache_jax.registers.sinks import find_sinks
from regcache_jax.studies.grid import features_of, label_free_error
from regcache_jax.studies.planted import Planted, plant


@dataclasses.dataclass(frozen=True)
class Found:
    """What `inspect` finds of planted sinks: the sensitive block, precision and recall of the tokens (over all images, where the
    sinks leave the planted block), and the cosine of their mean direction with the planted one."""

    block: int
    precision: float
    recall: float
    cosine: float


@dataclasses.dataclass(frozen=True)
class Restored:
    """Errors of the quantised features against the float ones of the encoder without sinks: of that encoder itself, of the one
    with planted sinks, and of that one with the plan that was searched; and how many sinks an image the plan leaves."""

    without_sinks: float
    with_sinks: float
    with_plan: float
    sinks_left: float
    result: SearchResult


def find_planted(planted: Planted, batch_size: int = 16) -> Found:
    """Inspects an encoder with planted patch sinks."""
    profile = inspect(planted.encoder, planted.images, batch_size=batch_size)
    after = planted.block + 1
    marked = find_sinks(planted.encoder, planted.images, batch_size=batch_size)[after]
    both = int((marked & planted.tokens).sum())
    return Found(
        profile.sensitive_block,
        precision=both / max(1, int(marked.sum())),
        recall=both / int(planted.tokens.sum()),
        cosine=float(abs(profile.sink_direction[after] @ planted.direction)),
    )


def restore_planted(planted: Planted, scheme: Scheme, config: SearchConfig, batch_size: int = 16) -> Restored:
    """Searches registers for an encoder with planted patch sinks and quantises it with and without them."""
    plain = plant([], spec=planted.encoder.spec, num_images=len(planted.images))
    reference = features_of(plain.encoder, planted.images, batch_size)
    result = search(planted.encoder, planted.images, scheme, config)

    def error(encoder: Encoder, plan: RegisterPlan | None = None) -> float:
        quantised = quantize(encoder, jnp.asarray(planted.images), scheme, plan)
        return label_free_error(features_of(quantised, planted.images), reference)

    registered = planted.encoder.with_plan(result.plan.prefix_only())
    left = inspect(registered, planted.images, batch_size=batch_size).sinks_per_image.sum()
    return Restored(
        error(plain.encoder),
        error(planted.encoder),
        error(planted.encoder, result.plan),
        float(left),
        result,
    )
