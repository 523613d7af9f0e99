"""Inspect: where an encoder's outliers are, in which tokens, and in which block they begin (paper, section 3 and step 1).

Streamed: norms go into histograms with logarithmic bins (6 % wide), so memory does not grow with the set. Figures are
l-inf norms of tokens, at the input of every block and of the four quantised sites.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.progress import Progress
from regcache_jax.core.scheme import SITES
from regcache_jax.core.sites import ImageTower
from regcache_jax.core.spec import ImageSpec
from regcache_jax.encoders.blocks import BlockTrace, Collectors
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.sheets import cells_of
from regcache_jax.encoders.vision import image_features
from regcache_jax.ops.delete import linf_norm
from regcache_jax.registers.extremes import channel_ratio, mean_cosine, mean_direction, typical_channels
from regcache_jax.registers.places import middle_patch, placed, tokens_of
from regcache_jax.registers.reference import Images, as_batches
from regcache_jax.registers.sinks import SINK_RATIO, sinks_of

PLACES = ("hidden", *SITES)
"""Where norms are taken: the block's input, then the four sites' inputs."""

GROUPS = ("class", "register", "patch")

PERCENTILES = (90.0, 99.0, 99.9)
"""Which percentiles of the norms are kept beside median and maximum."""

BIN_EDGES = 2.0 ** np.arange(-14.0, 22.0, 1.0 / 12.0)
"""Edges of the histogram's bins: twelve an octave."""

ABSENT = -1.0
"""In place of the norm of what is no token."""

KEPT_IMAGES = 256
"""Images whose largest and median tokens are kept for cosines and channels."""


@dataclasses.dataclass
class Profile:
    """What `inspect` saw. Arrays: P places (`PLACES`), L blocks, G groups (`GROUPS`), Q percentiles (`PERCENTILES`), N tokens;
    norms are l-inf.

    Of pictures of any shape a position is a cell of a grid that is laid over each.
    `sink_share`: the part of the images in which a position is a sink; `sink_attention`: the mean attention that an image's sinks draw;
    `sink_value` and `sink_moved`, per head, over the images that have sinks (0 where none has): how long sinks' values are beside
    ordinary patches', and how long what the other tokens get from sinks (attention times values) is beside all that they get.
    `sink_direction`: unit mean of each image's largest patch; cosines are between different images, of their largest
    and of their median patches. `channel`: the largest channel of ordinary tokens, `channel_ratio`: how far it stands out."""

    num_images: int
    maximum: Float[np.ndarray, "P L G"]
    median: Float[np.ndarray, "P L G"]
    percentile: Float[np.ndarray, "P L G Q"]
    position_maximum: Float[np.ndarray, "P L N"]
    sinks_per_image: Float[np.ndarray, "L"]
    sink_share: Float[np.ndarray, "L N"]
    sink_attention: Float[np.ndarray, "L"]
    sink_value: Float[np.ndarray, "L H"]
    sink_moved: Float[np.ndarray, "L H"]
    sink_direction: Float[np.ndarray, "L D"]
    sink_cosine: Float[np.ndarray, "L"]
    ordinary_cosine: Float[np.ndarray, "L"]
    channel: Int[np.ndarray, "P L"]
    channel_ratio: Float[np.ndarray, "P L"]

    @property
    def places(self) -> tuple[str, ...]:
        """Names of axis P."""
        return PLACES

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of axis G."""
        return GROUPS

    def ratio(self, group: str) -> Float[np.ndarray, "P L"]:
        """Largest norm in a group over the median patch's."""
        return self.maximum[:, :, GROUPS.index(group)] / np.maximum(self.median[:, :, GROUPS.index("patch")], 1e-12)

    @property
    def sink_block(self) -> int:
        """The block whose input holds the most sinks an image, the first of several."""
        return int(np.argmax(self.sinks_per_image))

    @property
    def sensitive_block(self) -> int:
        """l_q: the first block at whose MLP output layer (or at the next block's input) patch sinks stand out; without
        any, the block with the largest ratio there."""
        ratio = self.ratio("patch")
        return where_patches_jump(ratio[0], ratio[PLACES.index("fc2")])

    def to_json(self) -> dict[str, Any]:
        """All figures as lists, with the names of their axes."""
        figures = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in dataclasses.asdict(self).items()
        }
        return {
            "places": list(PLACES),
            "groups": list(GROUPS),
            "percentiles": list(PERCENTILES),
            "sensitive_block": self.sensitive_block,
            **figures,
        }


def where_patches_jump(hidden: Float[np.ndarray, "L"], fc2: Float[np.ndarray, "L"]) -> int:
    """The first block at whose MLP output layer, or at the next block's input, the largest patch stands out of the median one; where
    none does the block with the largest ratio at that layer."""
    above = np.flatnonzero(np.maximum(fc2, np.append(hidden[1:], 0.0)) >= SINK_RATIO)
    return int(above[0]) if len(above) else int(np.argmax(fc2))


def find_sensitive_block(encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], *, batch_size: int = 32) -> int:
    """l_q of a float encoder, without the rest of a profile (of its medians, which there come from histograms, to 6 %)."""
    found = [
        np.asarray(_patch_norms(encoder.params.image, jnp.asarray(batch, encoder.dtype), spec=encoder.spec.image))[
            :, :, mask
        ]
        for batch, mask in as_batches(images, encoder.spec, batch_size)
    ]
    norms = np.concatenate(found, axis=2).reshape(*found[0].shape[:2], -1)  # [L, 2, n N]
    norms = norms[:, :, norms[0, 0] != ABSENT]
    if not np.isfinite(norms).all():
        raise UserError(_not_finite(int(np.argwhere(~np.isfinite(norms))[:, 0].min())))
    ratio = norms.max(axis=2) / np.maximum(np.median(norms, axis=2), 1e-12)
    return where_patches_jump(ratio[:, 0], ratio[:, 1])


@functools.partial(jax.jit, static_argnames=("spec",))
def _patch_norms(tower: ImageTower, images: Float[Array, "B Y X 3"], *, spec: ImageSpec) -> Float[Array, "L 2 B M"]:
    def norms(trace: BlockTrace) -> Float[Array, "2 B M"]:
        patches = (_place(trace, place)[:, spec.num_protected :] for place in ("hidden", "fc2"))
        found = jnp.stack([linf_norm(each) for each in patches])
        there = tokens_of(trace, spec)
        return found if there is None else jnp.where(there, found, ABSENT)

    return image_features(tower, images, spec, collect={"norms": norms}).collected["norms"]


def _not_finite(block: int) -> str:
    return f"token norms of block {block} are not finite; the weights or the pictures hold NaN or infinity"


def _place(trace: BlockTrace, place: str) -> Float[Array, "B N C"]:
    value = getattr(trace, place)
    return value.reshape(*value.shape[:2], -1).astype(jnp.float32)


def _block_norms(trace: BlockTrace) -> Float[Array, "P B N"]:
    return jnp.stack([linf_norm(_place(trace, place)) for place in PLACES])


def _extremes(trace: BlockTrace, spec: ImageSpec) -> dict[str, Float[Array, "B C"]]:
    """The hidden state of each image's largest patch, and the median patch's input at every place."""
    first = spec.num_protected
    largest = jnp.argmax(linf_norm(trace.hidden)[:, first:], axis=1) + first
    found = {"largest": jnp.take_along_axis(trace.hidden, largest[:, None, None], axis=1)[:, 0]}
    for place in PLACES:
        inputs = _place(trace, place)[:, first:]
        order = middle_patch(linf_norm(inputs), tokens_of(trace, spec))
        found[place] = jnp.take_along_axis(inputs, order[:, None, None], axis=1)[:, 0]
    return found


@functools.partial(jax.jit, static_argnames=("spec",))
def _observe(
    tower: ImageTower, images: Float[Array, "B Y X 3"], plan: RegisterPlan | None, *, spec: ImageSpec
) -> dict[str, Any]:
    collect: Collectors = {
        "norms": _block_norms,
        "extremes": functools.partial(_extremes, spec=spec),
        "sinks": functools.partial(sinks_of, spec=spec),
        "there": functools.partial(tokens_of, spec=spec),
    }
    return image_features(tower, images, spec, plan=plan, collect=collect).collected


def inspect(encoder: Encoder, images: Images, *, batch_size: int = 32, progress: Progress | None = None) -> Profile:
    """Profiles a float encoder (its plan in place, if it has one) over one array of preprocessed images, or over batches
    with masks. `progress` hears how many images have passed.

    Raises UserError for an encoder that is quantised, an empty set, and where norms are not finite (which names the block).

    >>> import regcache_jax as rc
    >>> encoder, images, *truth = rc.plant(["patch sinks"])
    >>> profile = rc.inspect(encoder, images)
    >>> rc.judge(profile).kinds
    ('patch sinks',)
    """
    if encoder.scheme is not None:
        raise UserError(f"{encoder.spec.name} is quantised already ({encoder.scheme.name}); inspect the float encoder")
    spec = encoder.spec.image
    num_blocks, protected = spec.blocks.num_blocks, spec.num_protected
    num_places, bounds = protected + spec.grid**2, (0, int(spec.class_token), protected, spec.num_tokens)
    shape = (len(PLACES), num_blocks, len(GROUPS))
    histogram = np.zeros((*shape, len(BIN_EDGES) + 1), np.int64)
    maximum, position_maximum = np.zeros(shape), np.zeros((len(PLACES), num_blocks, num_places))
    sink_count, attention = np.zeros((num_blocks, num_places)), np.zeros(num_blocks)
    num_sinks = np.zeros(num_blocks)
    images_with_sinks, carried = np.zeros(num_blocks), np.zeros((2, num_blocks, spec.blocks.num_heads))
    kept: dict[str, list[np.ndarray]] = {name: [] for name in ("largest", *PLACES)}
    num_images, total = 0, len(images) if isinstance(images, np.ndarray | jax.Array) else None
    for batch, mask in as_batches(images, encoder.spec, batch_size):
        seen = jax.tree.map(
            np.asarray,
            _observe(encoder.params.image, jnp.asarray(batch, encoder.dtype), encoder.plan, spec=spec),
        )
        mask = np.asarray(mask, bool)
        norms = np.moveaxis(seen["norms"], 1, 0)[:, :, mask]  # [P, L, B, N]
        if not np.isfinite(norms).all():
            block = int(np.argwhere(~np.isfinite(norms))[:, 1].min())
            raise UserError(_not_finite(block))
        num_images += int(mask.sum())
        there, cells = np.ones(norms.shape[1:], bool), None
        if spec.blocks.padded:
            there, cells = seen["there"][:, mask], np.asarray(cells_of(jnp.asarray(batch), spec.grid))[mask]
            norms = np.where(there, norms, 0.0)
        position_maximum = np.maximum(position_maximum, placed(norms, cells, num_places).max(axis=2, initial=0.0))
        bins = np.searchsorted(BIN_EDGES, norms, side="right")
        for group in range(len(GROUPS)):
            part = slice(bounds[group], bounds[group + 1])
            maximum[:, :, group] = np.maximum(maximum[:, :, group], norms[..., part].max(axis=(2, 3), initial=0.0))
            for place in range(len(PLACES)):
                for block in range(num_blocks):
                    histogram[place, block, group] += np.bincount(
                        bins[place, block, :, part][there[block, :, part]], minlength=len(BIN_EDGES) + 1
                    )
        sink, drawn, value, moved = (each[:, mask] for each in seen["sinks"])
        has_sinks = sink.any(axis=2)  # [L, B]
        sink_count += placed(sink, cells, num_places).sum(axis=1)
        num_sinks += sink.sum(axis=(1, 2))
        attention += drawn.sum(axis=1)
        images_with_sinks += has_sinks.sum(axis=1)
        carried += np.stack([(each * has_sinks[..., None]).sum(axis=1) for each in (value, moved)])
        if sum(len(rows[0]) for rows in kept["largest"]) < KEPT_IMAGES:
            for name, rows in kept.items():
                rows.append(seen["extremes"][name][:, mask])
        if progress is not None:
            progress(num_images, total)
    if num_images == 0:
        raise UserError("inspect needs at least one image, got none")
    extremes = {name: np.concatenate(parts, axis=1)[:, :KEPT_IMAGES] for name, parts in kept.items()}
    return Profile(
        num_images=num_images,
        maximum=maximum,
        median=_percentile(histogram, 0.5),
        percentile=np.stack([_percentile(histogram, share / 100) for share in PERCENTILES], axis=-1),
        position_maximum=position_maximum,
        sinks_per_image=num_sinks / num_images,
        sink_share=sink_count / num_images,
        sink_attention=attention / num_images,
        sink_value=carried[0] / np.maximum(images_with_sinks, 1)[:, None],
        sink_moved=carried[1] / np.maximum(images_with_sinks, 1)[:, None],
        sink_direction=mean_direction(extremes["largest"]),
        sink_cosine=mean_cosine(extremes["largest"]),
        ordinary_cosine=mean_cosine(extremes["hidden"]),
        channel=np.stack([typical_channels(extremes[place]).argmax(axis=-1) for place in PLACES]),
        channel_ratio=np.stack([channel_ratio(extremes[place]) for place in PLACES]),
    )


def _percentile(histogram: np.ndarray, share: float) -> np.ndarray:
    """The geometric middle of the bin that holds a percentile (an empty histogram gives 0)."""
    total = histogram.sum(axis=-1, keepdims=True)
    index = np.argmax(np.cumsum(histogram, axis=-1) >= share * total, axis=-1)
    middle = np.concatenate([[0.0], np.sqrt(BIN_EDGES[:-1] * BIN_EDGES[1:]), [BIN_EDGES[-1]]])
    return np.where(total[..., 0] > 0, middle[index], 0.0)
