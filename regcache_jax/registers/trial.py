"""Trials: what a register plan costs or gains, without labels, re-running only the blocks that it changes.

Float and quantised hidden states of the reference set are computed once, at the input of every block where a plan may
begin. A trial calibrates from there with its plan in place, then runs the integer blocks from there. Block numbers, copies
and counts are traced, and images come in chunks of one shape, so the whole search runs two programs.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from regcache_jax.encoders.blocks import run_blocks
from regcache_jax.encoders.encoder import Encoder, normalize
from regcache_jax.encoders.spec import BlockSpec
from regcache_jax.encoders.vision import image_features, pool
from regcache_jax.errors import UserError
from regcache_jax.quantization.calibrate import Ranges, check_finite, range_collectors, scales_from_ranges
from regcache_jax.quantization.kernels import quantize_kernels
from regcache_jax.quantization.scheme import SITES, Scheme
from regcache_jax.registers.plan import RegisterPlan

MEMORY_LIMIT = 4 << 30
"""Bytes of hidden states kept in memory; beyond it they lie in a temporary file."""


def block_flops(spec: BlockSpec, num_tokens: int) -> int:
    """Floating point (or integer) operations of one block on one image: two for each multiplication that is added."""
    mlp = (3 if spec.gated_mlp else 2) * spec.width * spec.mlp_width
    return 2 * num_tokens * (4 * spec.width**2 + mlp + 2 * num_tokens * spec.width)


@functools.partial(jax.jit, static_argnames=("spec", "activations", "entries"))
def _float_states(params: Any, images: Any, *, spec: Any, activations: str, entries: tuple[int, ...]) -> Any:
    collectors = {**range_collectors(activations, spec.leading), "hidden": lambda trace: trace.hidden}
    output = image_features(params, images, spec, collect=collectors)
    hidden = output.collected.pop("hidden")
    return output.features, {block: hidden[block] for block in entries}, output.collected


@functools.partial(jax.jit, static_argnames=("spec", "scheme", "entries"))
def _quantized_states(params: Any, images: Any, *, spec: Any, scheme: Scheme, entries: tuple[int, ...]) -> Any:
    output = image_features(params, images, spec, scheme=scheme, collect={"hidden": lambda trace: trace.hidden})
    return {block: output.collected["hidden"][block] for block in entries}


@functools.partial(jax.jit, static_argnames=("spec", "activations"))
def _trial_ranges(params: Any, hidden: Any, plan: RegisterPlan, first: Any, *, spec: Any, activations: str) -> Ranges:
    return run_blocks(
        params["blocks"], hidden, spec.blocks,
        start=first, plan=plan, leading=spec.leading, collect=range_collectors(activations, spec.leading),
    ).collected  # fmt: skip


@functools.partial(jax.jit, static_argnames=("spec", "scheme", "unit"))
def _trial_features(
    params: Any, scales: Any, hidden: Any, plan: RegisterPlan, first: Any, *, spec: Any, scheme: Scheme, unit: bool
) -> Any:
    blocks = {**params["blocks"], **({"input_scale": scales} if scheme.calibrated else {})}
    output = run_blocks(blocks, hidden, spec.blocks, start=first, plan=plan, scheme=scheme, leading=spec.leading)
    features, _ = pool(params, output.hidden, spec, output.present)
    return normalize(features) if unit else features.astype(jnp.float32)


PROGRAMS = (_float_states, _quantized_states, _trial_ranges, _trial_features)


def compilations() -> int:
    """How many programs the trials have compiled in this process."""
    return sum(program._cache_size() for program in PROGRAMS)


@dataclasses.dataclass
class Cost:
    """What trials have cost: how many there were and the operations of all blocks they ran."""

    trials: int = 0
    block_flops: int = 0


class Trials:
    """Scores plans on a reference set of preprocessed images `[n, S, S, 3]` for one scheme.

    The error of an image is the squared distance between its float and its quantised feature, as the task uses them: of
    unit length (then it is 2 - 2 cosine) or, for encoders that do not normalise, over the float feature's squared length.
    With `labels` and `class_vectors [C, E]` it is 1 for a wrong top-1 and 0 for a right one. `entries`: the blocks where a
    plan may begin."""

    def __init__(
        self,
        encoder: Encoder,
        images: Float[Array, "n Y X 3"],
        scheme: Scheme,
        entries: tuple[int, ...],
        *,
        chunk: int = 32,
        labels: np.ndarray | None = None,
        class_vectors: np.ndarray | None = None,
    ) -> None:
        if len(images) == 0:
            raise UserError("the reference set is empty; give at least one image")
        self.encoder, self.scheme, self.spec = encoder, scheme, encoder.spec.image
        self.entries = tuple(sorted(set(entries)))
        self.num_images = len(images)
        devices = len(jax.devices())
        self.chunk = -(-min(chunk, len(images)) // devices) * devices
        self.sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
        self.labels, self.class_vectors = labels, class_vectors
        self.cost = Cost()
        self._prepare(images)

    def _chunks(self, array: np.ndarray) -> list[np.ndarray]:
        """The array in chunks of one shape, the last one filled up with its last row."""
        chunks = []
        for first in range(0, len(array), self.chunk):
            part = np.asarray(array[first : first + self.chunk])
            missing = self.chunk - len(part)
            chunks.append(np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part)
        return chunks

    def _put(self, array: Any) -> Array:
        return jax.device_put(array, self.sharding)

    def _prepare(self, images: np.ndarray) -> None:
        """Runs the set once in float and once quantised, without a plan, and keeps the states at the entries."""
        params, spec = self.encoder.params["image"], self.spec
        chunks = [chunk.astype(self.encoder.dtype) for chunk in self._chunks(images)]
        states = 2 * len(chunks) * len(self.entries) * self.chunk * spec.num_tokens * spec.blocks.width
        self._on_disk = states * np.dtype(self.encoder.dtype).itemsize > MEMORY_LIMIT
        self._files = tempfile.TemporaryDirectory() if self._on_disk else None
        features, self.float_states, ranges = [], [], None
        for chunk in chunks:
            feature, hidden, batch = _float_states(
                params, self._put(chunk), spec=spec, activations=self.scheme.activations, entries=self.entries
            )
            features.append(np.asarray(normalize(feature) if self.encoder.spec.normalize else feature, np.float32))
            self.float_states.append(self._keep(hidden))
            ranges = batch if ranges is None else jax.tree.map(jnp.maximum, ranges, batch)
        assert ranges is not None
        check_finite(ranges)
        self.float_features = np.concatenate(features)[: self.num_images]
        if not np.isfinite(self.float_features).all():
            raise UserError("the float encoder gives features that are not finite; check its weights and the pictures")
        self.base_ranges = ranges
        blocks = quantize_kernels(params["blocks"], self.scheme)
        self.quantized = {**params, "blocks": blocks}
        scaled = {**params, "blocks": {**blocks, **self._scale_leaf(self._scales(ranges))}}
        self.quantized_states = [
            self._keep(_quantized_states(scaled, self._put(chunk), spec=spec, scheme=self.scheme, entries=self.entries))
            for chunk in chunks
        ]
        self._count(len(chunks), 0)

    def _keep(self, hidden: dict[int, Array]) -> dict[int, Any]:
        """States of one chunk, in memory or in a file that is mapped back."""
        if self._files is None:
            return hidden
        kept = {}
        for block, array in hidden.items():
            path = tempfile.NamedTemporaryFile(dir=self._files.name, suffix=".npy", delete=False).name  # noqa: SIM115
            np.save(path, np.asarray(array))
            kept[block] = np.load(path, mmap_mode="r")
        return kept

    def _scales(self, ranges: Ranges) -> Ranges:
        scales = scales_from_ranges(ranges, self.scheme.activation_bits)
        return {site: scales[site] for site in SITES if site not in self.scheme.float_sites}

    def _scale_leaf(self, scales: Ranges) -> dict[str, Ranges]:
        return {"input_scale": scales} if self.scheme.calibrated else {}

    def _count(self, num_chunks: int, first: int, passes: int = 2) -> None:
        """Adds `passes` runs of the blocks from `first` on over `num_chunks` chunks."""
        per_block = block_flops(self.spec.blocks, self.spec.num_tokens)
        self.cost.block_flops += passes * num_chunks * self.chunk * (self.spec.blocks.num_blocks - first) * per_block

    def first_block(self, plan: RegisterPlan) -> int:
        """The first block that a plan changes (the last entry for a plan that does nothing)."""
        numbers = plan.schedule()
        begins = [numbers.start] if numbers.stop > numbers.start else []
        begins += [numbers.delete_block] if numbers.delete_count else []
        wanted = min(begins, default=self.entries[-1])
        return max((block for block in self.entries if block <= wanted), default=self.entries[0])

    def ranges(self, plan: RegisterPlan, chunks: list[int]) -> Ranges:
        """Ranges of all sites with the plan in place, calibrated on the given chunks."""
        first = self.first_block(plan)
        ranges: Ranges | None = None
        for index in chunks:
            batch = _trial_ranges(
                self.encoder.params["image"], self._put(self.float_states[index][first]), plan, jnp.int32(first),
                spec=self.spec, activations=self.scheme.activations,
            )  # fmt: skip
            ranges = batch if ranges is None else jax.tree.map(jnp.maximum, ranges, batch)
        assert ranges is not None
        self._count(len(chunks), first, passes=1)
        before = jnp.arange(self.spec.blocks.num_blocks) < first

        def splice(base: Array, own: Array) -> Array:
            return jnp.where(before.reshape(-1, *(1,) * (base.ndim - 1)), base, own)

        return jax.tree.map(splice, self.base_ranges, ranges)

    def features(self, plan: RegisterPlan, chunks: list[int], calibration: list[int] | None = None) -> np.ndarray:
        """Quantised features of the images of the given chunks (scales from `calibration`'s chunks, by default the same)."""
        first = self.first_block(plan)
        scales: Ranges = {}
        if self.scheme.calibrated:
            scales = self._scales(self.ranges(plan, chunks if calibration is None else calibration))
        found = [
            _trial_features(
                self.quantized,
                scales,
                self._put(self.quantized_states[index][first]),
                plan,
                jnp.int32(first),
                spec=self.spec,
                scheme=self.scheme,
                unit=self.encoder.spec.normalize,
            )
            for index in chunks
        ]
        self._count(len(chunks), first, passes=1)
        rows = np.concatenate([np.asarray(feature) for feature in found])
        return rows[: len(self._images_of(chunks))]

    def _images_of(self, chunks: list[int]) -> np.ndarray:
        """Numbers of the images in some chunks, in their order."""
        images = np.concatenate([np.arange(index * self.chunk, (index + 1) * self.chunk) for index in chunks])
        return images[images < self.num_images]

    @property
    def num_chunks(self) -> int:
        """How many chunks the reference set has."""
        return len(self.float_states)

    def errors(
        self, plan: RegisterPlan, num_chunks: int | None = None, calibration: list[int] | None = None
    ) -> np.ndarray:
        """The error of each image of the first `num_chunks` chunks, float64 `[n]`. One trial."""
        chunks = list(range(self.num_chunks if num_chunks is None else num_chunks))
        features = self.features(plan, chunks, calibration).astype(np.float64)
        self.cost.trials += 1
        images = self._images_of(chunks)
        if self.labels is not None and self.class_vectors is not None:
            return (np.argmax(features @ self.class_vectors.T, axis=1) != self.labels[images]).astype(np.float64)
        reference = self.float_features[images].astype(np.float64)
        return np.square(features - reference).sum(axis=1) / np.square(reference).sum(axis=1)
