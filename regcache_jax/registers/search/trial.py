"""Trials: what a register plan costs or gains, without labels, re-running only the blocks that it changes.

Float and quantised hidden states of the reference set are computed once, at the input of every block where a plan may
begin. A trial calibrates from there with its plan in place, then runs the integer blocks from there. Block numbers, copies
and counts are traced, and images come in chunks of one shape, so the whole search runs four programs.

Trials on a part of the set take one run instead of two where the extremes are enough: images of all draws run together, and
each is rounded by the extremes that those of the other draws show in that run. Trials on the whole set, which decide, are
calibrated in float, as `quantize` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.objective import Objective, reads_patches
from regcache_jax.core.outputs import Answers, Outputs, image_errors
from regcache_jax.core.outputs import joined as outputs_joined
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.progress import Progress
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.sites import Grid, ImageTower, Parameters
from regcache_jax.data.cut import filled
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.calibrate import Ranges
from regcache_jax.quantization.kernels import quantize_kernels
from regcache_jax.registers.candidates import Wanted
from regcache_jax.registers.search.parts import Draws
from regcache_jax.registers.search.programs import (
    block_flops,
    float_states,
    quantized_states,
    trial_outputs,
    trial_ranges,
    whole_outputs,
)
from regcache_jax.registers.search.ranges import Counts, Extremes, joined
from regcache_jax.registers.search.states import MEMORY_LIMIT, States


@dataclasses.dataclass(eq=False)
class Trials:
    """Scores plans on a reference set of preprocessed images `[n, S, S, 3]` for one scheme.

    Every image is scored under the scales of its draw, which come from the images of the other draws. Errors are those of
    `objective`; accuracy needs the images' `answers`. `entries`: the blocks where a plan may begin. `block_flops`
    counts the operations of all blocks run so far. Where candidates are `wanted`, the float run finds them on its way.
    Images are spread over this process's devices; a chunk holds the same images on any number of them, and belongs to one draw."""

    encoder: Encoder
    images: dataclasses.InitVar[Float[np.ndarray, "n Y X 3"]]
    scheme: Scheme
    entries: tuple[int, ...]
    draws: Draws
    chunk: int = 32
    objective: Objective = "pooled"
    answers: Answers | None = None
    memory_limit: int = MEMORY_LIMIT
    wanted: Wanted | None = None
    progress: dataclasses.InitVar[Progress | None] = None
    block_flops: int = dataclasses.field(default=0, init=False)

    def __post_init__(self, images: np.ndarray, progress: Progress | None) -> None:
        """Runs the set once in float and once quantised, without a plan, and keeps the states at the entries; `progress` hears of that
        in notes."""
        self.spec, self.num_images = self.encoder.spec.image, len(images)
        self.entries = tuple(sorted(set(self.entries)))
        extremes = self.scheme.calibrated and self.scheme.estimator == "absmax"
        self.in_one_run = extremes and self.draws.together(self.chunk)
        self.chunk = self.draws.chunk(self.chunk)
        self.num_chunks = -(-self.num_images // self.chunk)
        devices = jax.local_devices()
        self._rows = -(-self.chunk // len(devices)) * len(devices)
        mesh = Mesh(np.array(devices), ("data",))
        self._sharding = NamedSharding(mesh, PartitionSpec("data"))
        alone = self.encoder.params.image
        image = jax.device_put(alone, NamedSharding(mesh, PartitionSpec()))
        self.encoder = self.encoder.replace(params=Parameters(image))  # a loaded encoder lies on one device
        shape = (self._rows, self.spec.num_tokens, self.spec.blocks.width)
        self.float_states, self.quantized_states = (
            States(self.entries, self.num_chunks, shape, self.encoder.dtype, self.memory_limit // 2) for _ in range(2)
        )
        self._run_in_float(jax.device_put(alone, devices[0]), images, progress)
        self._quantized = image.replace(blocks=quantize_kernels(image.blocks, self.scheme))
        self._run_quantized(images, progress)
        self.count(passes=2)

    def _run_in_float(self, tower: ImageTower, images: np.ndarray, progress: Progress | None) -> None:
        """Keeps states, outputs and ranges, and finds the candidates that are wanted: on one device, so that they are the same to the bit
        on any number of them."""
        device = jax.local_devices()[0]
        outputs, ranges = [], []
        running = None if self.wanted is None else self.wanted.none_yet(self.spec.blocks)
        for index in range(self.num_chunks):
            batch, length = filled(self._part(images, index), self.chunk), self._lengths(index + 1)[-1]
            own, hidden, found, running = float_states(
                tower, jax.device_put(batch, device), jax.device_put(np.arange(self.chunk) < length, device),
                spec=self.encoder.spec, scheme=self.scheme, entries=self.entries, patches=self.reads_patches,
                running=jax.device_put(running, device),
            )  # fmt: skip
            if self._rows > self.chunk:
                hidden = {block: filled(np.asarray(states), self._rows) for block, states in hidden.items()}
            self.float_states.put(index, hidden)
            outputs.append(own.on_host().of(slice(length)))
            ranges.append(found)
            self._note(progress, "in float", index)
        self.candidates, self.float_outputs = running.found if running else None, outputs_joined(outputs)
        self.base_ranges = joined(ranges, self._lengths(self.num_chunks), self.scheme)
        self.base_ranges.check()
        if not np.isfinite(self.float_outputs.pooled).all():
            raise UserError("the float encoder gives features that are not finite; check its weights and the pictures")

    def _run_quantized(self, images: np.ndarray, progress: Progress | None) -> None:
        """Keeps states, and the errors without a plan."""
        base, errors = self.scales(self.base_ranges), []
        for index in range(self.num_chunks):
            grids = {site: Grid(scale) for site, scale in base[self._draw(index)].items()}
            scaled = self._quantized.replace(blocks=self._quantized.blocks.with_grids(grids))
            own, hidden = quantized_states(
                scaled, self._images(images, index),
                spec=self.encoder.spec, scheme=self.scheme, entries=self.entries, patches=self.reads_patches,
            )  # fmt: skip
            self.quantized_states.put(index, hidden)
            rows = self._rows_of(index)
            errors.append(self._errors(own.on_host().of(slice(rows.stop - rows.start)), rows))
            self._note(progress, "quantised", index)
        self.base_errors = np.concatenate(errors)

    def _note(self, progress: Progress | None, how: str, index: int) -> None:
        if progress is not None:
            progress(0, None, f"{self._rows_of(index).stop} of {self.num_images} pictures {how}")

    def _images(self, images: np.ndarray, index: int) -> Array:
        """One chunk, filled up with its last image to a row count that the devices share evenly."""
        return jax.device_put(filled(self._part(images, index), self._rows), self._sharding)

    def _part(self, images: np.ndarray, index: int) -> np.ndarray:
        return np.asarray(images[index * self.chunk : (index + 1) * self.chunk], self.encoder.dtype)

    @property
    def reads_patches(self) -> bool:
        """Whether outputs hold patch tokens."""
        return reads_patches(self.objective)

    def quantized_chunk(self, index: int, block: int) -> tuple[Array, Outputs, Array]:
        """One chunk's quantised states at an entry block, its float outputs, and a mask that leaves the fillers out."""
        rows = np.arange(index * self.chunk, index * self.chunk + self._rows)
        reference = self.float_outputs.of(np.minimum(rows, self.num_images - 1))
        hidden, outputs = jax.device_put((self.quantized_states.get(index, block), reference), self._sharding)
        return hidden, outputs, self._real(index)

    def _real(self, index: int) -> Array:
        """Which rows of a chunk are images, and not there to fill it up."""
        (length,) = self._lengths(index + 1)[-1:]
        return jax.device_put(np.arange(self._rows) < length, self._sharding)

    def _rows_of(self, index: int) -> slice:
        """A chunk's images."""
        return slice(index * self.chunk, index * self.chunk + self._lengths(index + 1)[-1])

    def _lengths(self, num_chunks: int) -> list[int]:
        """Images in each of the first chunks."""
        return [min(self.chunk, self.num_images - index * self.chunk) for index in range(num_chunks)]

    def _draw(self, index: int) -> int:
        """The draw that scores a chunk."""
        return int(self.draws.of(np.array([index * self.chunk]))[0])

    def scales(self, ranges: Extremes | Counts) -> list[Ranges]:
        """The static scales of every draw: from all units that it does not score (none where scales are measured as they pass)."""
        if not self.scheme.calibrated:
            return [{}] * self.draws.count
        size = 1 if isinstance(ranges, Extremes) else self.chunk
        own = self.draws.of(np.arange(ranges.num_units) * size)
        others = [np.flatnonzero((own != number) | (self.draws.count == 1)) for number in range(self.draws.count)]
        return [ranges.scales(self.scheme, drawn) for drawn in others]

    def count(self, passes: int, num_images: int | None = None, first: int = 0) -> None:
        """Adds runs of the blocks from `first` on over so many images to `block_flops`."""
        images = self.num_images if num_images is None else num_images
        per_block = block_flops(self.spec.blocks, self.spec.num_tokens)
        self.block_flops += passes * images * (self.spec.blocks.num_blocks - first) * per_block

    def calibrated(self, plan: RegisterPlan) -> list[Ranges]:
        """The static scales with a plan in place: from all images, then those of every draw."""
        if not self.scheme.calibrated:
            return [{}] * (1 + self.draws.count)
        ranges = self.ranges(plan)
        return [ranges.scales(self.scheme), *self.scales(ranges)]

    def first_block(self, plan: RegisterPlan) -> int:
        """The last entry at or before the first block that a plan changes (the last of all for a plan that does nothing)."""
        wanted = min(plan.schedule().begins, default=self.entries[-1])
        reachable = [block for block in self.entries if block <= wanted]
        if not reachable:
            raise ValueError(f"a plan that begins at block {wanted} is before the first entry {self.entries[0]}")
        return reachable[-1]

    def ranges(self, plan: RegisterPlan, num_images: int | None = None) -> Extremes | Counts:
        """What the scales come from, over the first images (whole chunks) and with the plan in place."""
        images = self.num_images if num_images is None else num_images
        number = -(-images // self.chunk)
        if not plan.schedule().begins:
            return self.base_ranges.of(slice(images if isinstance(self.base_ranges, Extremes) else number))
        found = [self._chunk_ranges(plan, index) for index in range(number)]
        later = joined(found, self._lengths(number), self.scheme)
        return self.base_ranges.followed_by(later, self.first_block(plan))

    def _chunk_ranges(self, plan: RegisterPlan, index: int) -> Any:
        """What the collectors give for one chunk, from the first block that the plan changes."""
        first, real = self.first_block(plan), self._real(index)
        hidden = jax.device_put(self.float_states.get(index, first), self._sharding)
        self.count(1, self._lengths(index + 1)[-1], first)
        image = self.encoder.params.image
        return trial_ranges(image, hidden, plan, jnp.int32(first), real, spec=self.spec, scheme=self.scheme)

    def exceeds(self, plan: RegisterPlan, limits: Ranges) -> bool:
        """Whether any static scale, over all images and with the plan in place, is above its limit. Where extremes are enough, the first
        chunk that shows it ends the run."""
        first = self.first_block(plan)

        def above(ranges: Extremes | Counts) -> bool:
            scales = ranges.scales(self.scheme)
            return any(
                bool(np.any(np.asarray(scales[site])[first:] > np.asarray(limits[site])[first:])) for site in scales
            )

        if self.scheme.estimator != "absmax" or not plan.schedule().begins:
            return above(self.ranges(plan))
        lengths = self._lengths(self.num_chunks)
        chunks = (joined([self._chunk_ranges(plan, n)], [lengths[n]], self.scheme) for n in range(self.num_chunks))
        return any(above(ranges) for ranges in chunks)

    def drawn_errors(
        self, plan: RegisterPlan, num_images: int | None = None, scales: list[Ranges] | None = None
    ) -> Iterator[Float[np.ndarray, "c"]]:
        """One trial, a draw at a time: the errors of the images, among the first so many, that the draw scores. `scales`: those of every
        draw, where they are known."""
        images = self.num_images if num_images is None else num_images
        if not plan.schedule().begins and images == self.num_images:
            own = self.draws.of(np.arange(images))
            yield from (self.base_errors[own == draw] for draw in range(self.draws.count))
            return
        chunks = range(-(-images // self.chunk))
        scored = [[index for index in chunks if self._draw(index) == draw] for draw in range(self.draws.count)]
        if scales is None and self.in_one_run and images < self.num_images:
            rounds = [self._chunk_errors(plan, {}, each, self._others(each)) for each in zip(*scored, strict=True)]
            yield from (np.concatenate(found) for found in zip(*rounds, strict=True))
            return
        if scales is None:
            scales = self.scales(self.ranges(plan, images)) if self.scheme.calibrated else [{}] * self.draws.count
        for own_scales, indices in zip(scales, scored, strict=True):
            yield np.concatenate([self._chunk_errors(plan, own_scales, (index,))[0] for index in indices])

    def _others(self, indices: Sequence[int]) -> Bool[np.ndarray, "A A"]:
        """Which rows of some whole chunks give which others their scales."""
        rows = np.arange(self._rows)
        positions = np.concatenate([index * self.chunk + np.minimum(rows, self.chunk - 1) for index in indices])
        return self.draws.others(positions) & np.tile(rows < self.chunk, len(indices))

    def _chunk_errors(
        self,
        plan: RegisterPlan,
        scales: Ranges,
        indices: Sequence[int],
        others: Bool[np.ndarray, "A A"] | None = None,
    ) -> list[Float[np.ndarray, "c"]]:
        """The errors of the images of some chunks that run together, a chunk at a time: under given static scales, or under those that
        `others` give them."""
        first = self.first_block(plan)
        hidden = [jax.device_put(self.quantized_states.get(index, first), self._sharding) for index in indices]
        outputs = trial_outputs(
            self._quantized, scales, tuple(hidden), plan, jnp.int32(first),
            spec=self.encoder.spec, scheme=self.scheme, patches=self.reads_patches, others=others,
        ).on_host()  # fmt: skip
        found = []
        for place, index in enumerate(indices):
            rows, begin = self._rows_of(index), place * self._rows
            found.append(self._errors(outputs.of(slice(begin, begin + rows.stop - rows.start)), rows))
        self.count(1, sum(map(len, found)), first)
        return found

    def _errors(self, outputs: Outputs, rows: slice) -> Float[np.ndarray, "c"]:
        answers = None if self.answers is None else self.answers.of(rows)
        return image_errors(self.objective, outputs, self.float_outputs.of(rows), answers)

    def errors(self, plan: RegisterPlan, scales: list[Ranges] | None = None) -> Float[np.ndarray, "n"]:
        """One trial: the error of each image, under the scales of its draw (found first, where they are not known)."""
        own, errors = self.draws.of(np.arange(self.num_images)), np.empty(self.num_images)
        for draw, found in enumerate(self.drawn_errors(plan, scales=scales)):
            errors[own == draw] = found
        return errors

    def unseen_outputs(
        self, images: Float[np.ndarray, "k Y X 3"], plan: RegisterPlan, scales: Ranges | None
    ) -> Outputs:
        """Outputs of images outside the set: quantised under some scales, or (None) in float; the whole tower with a plan."""
        params, scheme = (self.encoder.params.image, None) if scales is None else (self._quantized, self.scheme)
        found = []
        for index in range(-(-len(images) // self.chunk)):
            outputs = whole_outputs(
                params, scales or {}, self._images(images, index), plan,
                spec=self.encoder.spec, scheme=scheme, patches=self.reads_patches,
            )  # fmt: skip
            found.append(outputs.on_host().of(slice(self.chunk)))
        self.count(1, len(images))
        return outputs_joined(found).of(slice(len(images)))
