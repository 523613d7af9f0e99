"""Beside the image tower's blocks: attention pooling (a block without a residual) and the text tower, rounded to the nearest.

Both are given to the kernels' and the calibration's own functions as stacks of blocks. The pooling head's query comes from its
probe alone, the same for every image, and stays in float.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Head, ImageTower, TextTower
from regcache_jax.core.spec import ImageSpec, TextSpec
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.pooling import head_trace
from regcache_jax.encoders.text import text_features
from regcache_jax.encoders.vision import image_features
from regcache_jax.quantization.calibration import Calibration, add_counts, add_grids, counters
from regcache_jax.quantization.histogram import Counted, Histogram
from regcache_jax.quantization.kernels import quantize_kernels

BATCH = 64
"""Texts a step of calibration."""


def quantize_head(
    encoder: Encoder, quantized: Encoder, batches: Iterable[Float[Array | np.ndarray, "_ _ _ 3"]]
) -> Encoder:
    """Quantises attention pooling; its ranges are those behind the float blocks, the plan in place. Raises UserError for encoders
    that pool otherwise, and where there is nothing to calibrate on."""
    spec, scheme = encoder.spec.image, _of_part(quantized, "head")
    if spec.pooling != "map":
        raise UserError(f"{encoder.spec.name} has no attention pooling to quantise")
    head = encoder.params.image.head
    sites: dict[str, Histogram] = {}
    for images in batches if scheme.calibrated else ():
        params, images = encoder.params.image, jnp.asarray(images, encoder.dtype)
        sites = add_counts(sites, _head_counts(params, images, encoder.plan, spec=spec))
    assert head is not None
    head = with_rounded_stack(head, _rounded(head_stack(head), scheme, sites, "head"))
    image = quantized.params.image.replace(head=head)
    return quantized.replace(params=quantized.params.replace(image=image))


def head_stack(head: Head) -> Block:
    """What can be rounded of attention pooling, as a stack of one block (which keeps the query's projection as it is)."""
    block = Block(head.norm, head.attention.replace(query=None), head.norm, head.mlp, grids=head.grids)
    return jax.tree.map(lambda leaf: leaf[None], block)


def with_rounded_stack(head: Head, stack: Block) -> Head:
    """The head with the integers (and grids) that were made of `head_stack`."""
    found = jax.tree.map(operator.itemgetter(0), stack)
    attention = found.attention.replace(query=head.attention.query)
    return head.replace(attention=attention, mlp=found.mlp, grids=found.grids)


def quantize_text(encoder: Encoder, texts: Int[Array | np.ndarray, "m T"] | None) -> Encoder:
    """Quantises the blocks of the text tower. Raises UserError where it has none, and where there are no texts to calibrate on."""
    spec, scheme = encoder.spec.text, _of_part(encoder, "text")
    if spec is None or spec.kind != "transformer":
        raise UserError(f"{encoder.spec.name} has no transformer text tower to quantise")
    sites: dict[str, Histogram] = {}
    for first in range(0, 0 if texts is None or not scheme.calibrated else len(texts), BATCH):
        ids = jnp.asarray(texts[first : first + BATCH])  # type: ignore[index]
        sites = add_counts(sites, _text_counts(encoder.params.text, ids, spec=spec))
    tower = encoder.params.text
    assert isinstance(tower, TextTower)
    rounded = tower.replace(blocks=_rounded(tower.blocks, scheme, sites, "text"))
    return encoder.replace(params=encoder.params.replace(text=rounded))


def _of_part(encoder: Encoder, part: str) -> Scheme:
    scheme = None if encoder.scheme is None else encoder.scheme.of_part(part)
    assert scheme is not None
    return scheme


def _rounded(stack: Block, scheme: Scheme, sites: dict[str, Histogram], part: str) -> Block:
    """A stack with integer kernels and, if they are to be calibrated, scales. Raises UserError where nothing was counted."""
    rounded = quantize_kernels(stack, scheme)
    if not scheme.calibrated:
        return rounded
    if not sites:
        what = "`texts`, padded ids" if part == "text" else "calibration images, not a calibration that was kept"
        raise UserError(f"the {scheme.activations} scales of the {part} must be calibrated: give {what}")
    return add_grids(rounded, Calibration(sites, groups=False, num_images=0).grids(scheme), scheme)


@functools.partial(jax.jit, static_argnames="spec")
def _head_counts(
    tower: ImageTower, images: Float[Array, "B Y X 3"], plan: RegisterPlan | None, *, spec: ImageSpec
) -> dict[str, Counted]:
    assert tower.head is not None
    output = image_features(tower, images, spec, plan=plan)
    trace = head_trace(tower.head, output.tokens, spec, output.present)[1]
    pooled = trace._replace(present=None)  # one row an image, which is there
    counted = {site: count(trace if site == "qkv" else pooled) for site, count in counters(SITES, None).items()}
    return jax.tree.map(lambda leaf: leaf[None], counted)


@functools.partial(jax.jit, static_argnames="spec")
def _text_counts(tower: TextTower, ids: Int[Array, "B T"], *, spec: TextSpec) -> dict[str, Counted]:
    return text_features(tower, ids, spec, collect=counters(SITES, None))[1]
