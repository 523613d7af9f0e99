"""What is at stake: the error of plain integers, and how much of it goes away when one outlier alone gets a scale of its own.

Norms say that something stands out, not what it costs. So the integers of a few pictures are simulated in float, block by block, with
static absmax scales from the same pictures: one scale a site for all that is left, and one for each outlier that is taken apart (sink
tokens, class token, trained registers, the outlying channel). One program serves every block and every choice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import Objective, checked, name_of, reads_patches
from regcache_jax.core.outputs import Answers, Outputs, image_errors
from regcache_jax.core.progress import Progress
from regcache_jax.core.scheme import SITES, Scheme
from regcache_jax.core.sites import Block, Grid, ImageTower
from regcache_jax.core.spec import EncoderSpec, ImageSpec, Protected
from regcache_jax.encoders.blocks import encoder_block
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.outputs import pooled_outputs
from regcache_jax.encoders.rounding import Run
from regcache_jax.encoders.vision import embed_patches
from regcache_jax.ops.integers import largest_integer
from regcache_jax.quantization.kernels import simulated_kernels
from regcache_jax.registers.inspect import PLACES, SINK_RATIO, Profile
from regcache_jax.registers.kinds import NOTICED, OUTLIERS, standings
from regcache_jax.registers.places import median_patch
from regcache_jax.registers.reference import check_images

PICTURES = 16
"""Pictures that are measured on, at most, unless more are asked for."""

LITTLE = 0.002
"""An error below which there is little to take: a cosine of 0.999."""


class Seen(NamedTuple):
    """What passes the four sites of one block in float: every token's largest magnitude without the outlying channel, that
    channel's, and which patches stand out."""

    others: Float[Array, "S B N"]
    channel: Float[Array, "S B N"]
    sink: Bool[Array, "S B N"]


class Scales(NamedTuple):
    """A scale for every token at the four sites of one block, and one for a channel (-1: none has its own)."""

    token: Float[Array, "S B N"]
    channel: Float[Array, "S"]
    outlying: Int[Array, "S"]


@dataclasses.dataclass(frozen=True)
class Stakes:
    """Mean errors over some pictures: of plain integers, `without` one kind of outlier, with `only` that kind left and all others taken
    apart, without all. `top1`:
    the share of right answers in float and of plain integers, where labels are. `remedies`: errors of real encoders, by name."""

    images: int
    scheme: str
    objective: str
    plain: float
    without: dict[str, float]
    only: dict[str, float]
    without_all: float
    top1: tuple[float, float] | None = None
    remedies: dict[str, float] = dataclasses.field(default_factory=dict)

    def worth(self, kind: str) -> float | None:
        """The part of the plain error that goes away without this kind alone; None where it was not measured."""
        return 1 - self.without[kind] / self.plain if kind in self.without and self.plain > 0 else None

    def worth_last(self, kind: str) -> float | None:
        """The part that goes away with this kind where all others are gone already: while another outlier holds a scale, taking one
        away may bring nothing."""
        return (self.only[kind] - self.without_all) / self.plain if kind in self.only and self.plain > 0 else None

    def sentences(self) -> list[str]:
        """How much there is to take, what all outliers together are worth, and what remedies leave, a line each."""
        said = f"at stake: plain {self.scheme} has an error of {self.plain:.3g} ({self.objective}) on {counted(self.images, 'picture')}"
        if self.top1 is not None:
            said += f", and {100 * (self.top1[0] - self.top1[1]):+.1f} points of top-1 lost".replace("+-", "-")
        if self.plain < LITTLE:
            said += "; there is little to take away"
        elif self.without:
            said += f"; {1 - self.without_all / self.plain:.0%} of it is the outliers'"
        else:
            said += "; no outlier has a part in it"
        if not self.remedies:
            return [said]
        ranked = sorted(self.remedies.items(), key=lambda pair: pair[1])
        return [said, "remedies on these pictures: " + ", ".join(f"{name} {error:.3g}" for name, error in ranked)]


def measure_stakes(
    encoder: Encoder,
    images: Float[np.ndarray, "n Y X 3"],
    scheme: Scheme,
    profile: Profile,
    *,
    objective: Objective = "pooled",
    answers: Answers | None = None,
    progress: Progress | None = None,
) -> Stakes:
    """Takes every kind of outlier that a profile shows (`kinds.NOTICED`) apart, alone and all together.

    Scales are static and absmax, whatever the scheme says of them, and come from the same pictures. Under accuracy the errors are those of
    the pooled features, and `top1` is of `answers`."""
    images = np.asarray(images)
    check_images(images, encoder.spec)
    if encoder.scheme is not None:
        raise UserError(
            f"{encoder.spec.name} is quantised already ({encoder.scheme.name}); stakes are of the float encoder"
        )
    objective = "pooled" if objective == "accuracy" else checked(objective)
    bench = Apart(encoder.with_plan(None), images, scheme, profile, reads_patches(objective))
    noticed = [kind for kind, standing in standings(profile).items() if standing.is_noticed]
    others = {kind: tuple(other for other in noticed if other != kind) for kind in noticed}
    choices = list(dict.fromkeys([(), *((kind,) for kind in noticed), *others.values(), tuple(noticed)]))
    found: dict[tuple[str, ...], Outputs] = {}
    for number, choice in enumerate(choices):
        if progress is not None:
            progress(number, len(choices))
        found[choice] = bench.outputs(choice)
    errors = {choice: float(image_errors(objective, own, bench.exact).mean()) for choice, own in found.items()}
    top1 = None
    if answers is not None:
        wrong = [float(image_errors("accuracy", own, bench.exact, answers).mean()) for own in (bench.exact, found[()])]
        top1 = (1 - wrong[0], 1 - wrong[1])
    return Stakes(
        len(images),
        scheme.name,
        name_of(objective),
        errors[()],
        {kind: errors[kind,] for kind in noticed},
        {kind: errors[others[kind]] for kind in noticed},
        errors[tuple(noticed)],
        top1,
    )


class Apart:
    """An encoder on some pictures with simulated integers, and what its float run shows at every site."""

    def __init__(
        self, encoder: Encoder, images: Float[np.ndarray, "n Y X 3"], scheme: Scheme, profile: Profile, patches: bool
    ) -> None:
        self.spec, self.patches = encoder.spec, patches
        self.scheme = scheme.plain
        self.tower = encoder.params.image
        self.rounded = simulated_kernels(self.tower.blocks, self.scheme)
        sites = [PLACES.index(site) for site in SITES]
        stands = standings(profile)[OUTLIERS[3]]
        far = stands.ratio >= NOTICED * stands.line
        self.channels = np.where(far, profile.channel, -1)[sites].astype(np.int32)  # [S, L]
        self.embedded = _embed(self.tower, jnp.asarray(images, encoder.dtype), spec=self.spec.image)
        hidden, self.seen = self.embedded, []
        for block in range(self.spec.image.blocks.num_blocks):
            own = _block(self.tower.blocks, block)
            hidden, seen = _observe(own, hidden, jnp.asarray(self.channels[:, block]), spec=self.spec.image)
            self.seen.append(jax.tree.map(np.asarray, seen))
        self.exact = self._finished(hidden)

    def _finished(self, hidden: Float[Array, "B N D"]) -> Outputs:
        return _finish(self.tower, hidden, spec=self.spec, patches=self.patches).on_host()

    def outputs(self, kinds: Collection[str]) -> Outputs:
        """With these kinds of outliers taken apart."""
        hidden = self.embedded
        for block, seen in enumerate(self.seen):
            scales = scales_apart(
                seen, self.channels[:, block], kinds, self.spec.image.protected, self.scheme.activation_bits
            )
            hidden = _round(_block(self.rounded, block), hidden, scales, spec=self.spec.image, scheme=self.scheme)
        return self._finished(hidden)


def scales_apart(
    seen: Seen, channels: Int[np.ndarray, "S"], kinds: Collection[str], protected: Protected, bits: int
) -> Scales:
    """The scales of one block: one for the tokens of each kind, and one for all others; a channel that is taken apart counts for none."""
    apart = (channels >= 0) & (OUTLIERS[3] in kinds)
    norms = np.where(apart[:, None, None], seen.others, np.maximum(seen.others, seen.channel))
    position = np.arange(norms.shape[2])
    group = np.zeros(norms.shape, int)
    first = protected.class_tokens
    is_class, is_register = position < first, (position >= first) & (position < sum(protected))
    members_of = (np.asarray(seen.sink), *(np.broadcast_to(own, group.shape) for own in (is_class, is_register)))
    for number, (kind, members) in enumerate(zip(OUTLIERS, members_of, strict=False)):
        if kind in kinds:
            group[members] = number + 1
    scale = np.ones_like(norms)
    for site in range(len(norms)):
        for number in np.unique(group[site]):
            members = group[site] == number
            scale[site][members] = norms[site][members].max()
    channel = np.where(apart, seen.channel.max(axis=(1, 2)), 1.0)
    steps = [np.where(each > 0, each / largest_integer(bits), 1.0).astype(np.float32) for each in (scale, channel)]
    return Scales(jnp.asarray(steps[0]), jnp.asarray(steps[1]), jnp.asarray(np.where(apart, channels, -1), jnp.int32))


def _block(blocks: Block, index: int) -> Block:
    return jax.tree.map(lambda leaf: leaf[index], blocks)


@functools.partial(jax.jit, static_argnames="spec")
def _embed(tower: ImageTower, images: Float[Array, "B Y X 3"], *, spec: ImageSpec) -> Float[Array, "B N D"]:
    return embed_patches(tower, images, spec)


@functools.partial(jax.jit, static_argnames="spec")
def _observe(
    block: Block, hidden: Float[Array, "B N D"], channels: Int[Array, "S"], *, spec: ImageSpec
) -> tuple[Float[Array, "B N D"], Seen]:
    """One block in float, and what passes its sites."""
    run = Run(spec.blocks, None, spec.protected)
    output, trace = encoder_block(block, hidden, run, turn=run.turn(hidden.shape[1]))
    is_patch = jnp.arange(hidden.shape[1], dtype=jnp.int32) >= spec.num_protected
    found = []
    for number, site in enumerate(SITES):
        magnitude = jnp.abs(getattr(trace, site)).reshape(*hidden.shape[:2], -1).astype(jnp.float32)
        if trace.present is not None:
            magnitude = jnp.where(trace.present[..., None], magnitude, 0.0)
        own = jnp.arange(magnitude.shape[2], dtype=jnp.int32) == channels[number]
        others, channel = (jnp.max(jnp.where(mask, magnitude, 0.0), axis=2) for mask in (~own, own))
        norms = jnp.maximum(others, channel)
        far = norms >= NOTICED * SINK_RATIO * median_patch(norms, trace, spec)
        found.append(Seen(others, channel, is_patch & far))
    return output, jax.tree.map(lambda *sites: jnp.stack(sites), *found)


@functools.partial(jax.jit, static_argnames=("spec", "scheme"))
def _round(
    block: Block, hidden: Float[Array, "B N D"], scales: Scales, *, spec: ImageSpec, scheme: Scheme
) -> Float[Array, "B N D"]:
    """One block with its inputs rounded to these scales."""
    blocks, grids = spec.blocks, {}
    shapes = {"out": (blocks.num_heads, blocks.head_dim), "fc2": (blocks.mlp_width,)}
    for number, site in enumerate(SITES):
        shape = shapes.get(site, (blocks.width,))
        own = jnp.arange(int(np.prod(shape)), dtype=jnp.int32) == scales.outlying[number]
        scale = jnp.where(own, scales.channel[number], scales.token[number][..., None])
        grids[site] = Grid(scale.reshape(*scale.shape[:2], *shape))
    run = Run(blocks, scheme, spec.protected)
    return encoder_block(block.with_grids(grids), hidden, run, turn=run.turn(hidden.shape[1]))[0]


@functools.partial(jax.jit, static_argnames=("spec", "patches"))
def _finish(tower: ImageTower, hidden: Float[Array, "B N D"], *, spec: EncoderSpec, patches: bool) -> Outputs:
    return pooled_outputs(tower, hidden, spec, patches)
