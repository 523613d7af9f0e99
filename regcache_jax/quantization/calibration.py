"""A calibration that is kept: histograms of every site, from one streamed run, that give ranges under any estimator."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Literal, NotRequired

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int, PyTree
from pydantic import StringConstraints
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.scheme import INPUTS, PRODUCT_INPUTS, SITES, Scheme
from regcache_jax.core.sites import Block, Grid
from regcache_jax.core.spec import Protected
from regcache_jax.encoders.blocks import BlockTrace
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.files.bounded import parse_json
from regcache_jax.files.identity import Digest
from regcache_jax.files.places import as_path
from regcache_jax.files.tensors import read_tensors, write_tensors
from regcache_jax.quantization.calibrate import LargestMagnitudes, check_finite, scales_from_ranges
from regcache_jax.quantization.gather import gather
from regcache_jax.quantization.histogram import (
    BINS,
    LARGEST_EXPONENT,
    SMALLEST_EXPONENT,
    Counted,
    Histogram,
    bounds,
    count,
    largest_integers,
    scale_and_zero_point,
)
from regcache_jax.quantization.kernels import add_offset, quantized_cells


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What passed every site of a float encoder. `groups`: class token, trained registers and patches are counted apart."""

    sites: dict[str, Histogram]
    groups: bool
    num_images: int
    made_for: str | None = None
    """Hash of the encoder and the plan that were observed, where that was noted."""

    def belonging_to(self, encoder: Encoder) -> Calibration:
        """The same, noting whose it is."""
        return dataclasses.replace(self, made_for=_identity(encoder))

    def check(self, encoder: Encoder) -> None:
        """Raises UserError for an encoder or a plan other than those observed."""
        if self.made_for not in (None, _identity(encoder)):
            raise UserError(
                "the calibration is of another encoder, or was made with another register plan; calibrate again"
            )

    def grids(self, scheme: Scheme) -> dict[str, Grid]:
        """Of everything that needs one: a scale `[L]`, or `[L, 3]` for token groups, and, if not symmetric, an offset `[L]`.

        Raises UserError where the calibration counted the groups together and the scheme wants them apart, or the reverse."""
        if self.groups != (scheme.activations == "group"):
            have, want = ("apart", "together") if self.groups else ("together", "apart")
            raise UserError(
                f"the calibration counted class token, registers and patches {have}, {scheme.activations} scales need them "
                f"{want}; calibrate again"
            )
        grids = {}
        for site in scheme.inputs:
            if site not in self.sites:
                raise UserError(f"the calibration did not count {site}, which {scheme.name} needs; calibrate again")
            histogram = self.sites[site]
            levels = _levels(scheme, site, len(histogram.counts))
            scale, zero_point = scale_and_zero_point(*site_bounds(histogram, scheme, site), levels[:, None])
            shifted = not scheme.symmetric and site in SITES
            grids[site] = Grid(
                jnp.asarray(scale if self.groups and site in SITES else scale[:, 0]),
                jnp.asarray(zero_point[:, 0].astype(np.float32) * scale[:, 0]) if shifted else None,
            )
        return grids

    def save(self, path: epath.PathLike) -> None:
        """Writes one safetensors file, beside its name and then renamed."""
        path = as_path(path)
        tensors = {
            f"{site}/{field.name}": np.ascontiguousarray(getattr(histogram, field.name))
            for site, histogram in self.sites.items()
            for field in dataclasses.fields(Histogram)
        }
        metadata = {
            "regcache_jax": "calibration",
            "groups": json.dumps(self.groups),
            "num_images": str(self.num_images),
            **({} if self.made_for is None else {"made_for": self.made_for}),
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: epath.PathLike) -> Calibration:
        """Reads what `save` wrote. Raises UserError for another file."""
        path = as_path(path)
        if not path.exists():
            raise UserError(f"there is no calibration file {path}; `regcache calibrate` makes one")
        tensors, texts = read_tensors(path, "calibration file", {"regcache_jax", "groups", "num_images", "made_for"})
        described = parse_json(json.dumps(texts), _Described, path)
        counted = sorted({name.split("/")[0] for name in tensors})
        missing = [site for site in SITES if site not in counted]
        unknown = [site for site in counted if site not in INPUTS]
        if missing or unknown:
            raise UserError(
                f"{path} is not a calibration file: it lacks {missing} and has the unknown {shown(unknown)}"
            )
        groups = described["groups"] == "true"
        sites = {site: _histogram(path, site, tensors, groups) for site in sorted(counted, key=INPUTS.index)}
        if len(sizes := {len(histogram.counts) for histogram in sites.values()}) > 1:
            raise UserError(f"{path} is not a calibration file: its sites have {sorted(sizes)} blocks")
        return cls(sites, groups, int(described["num_images"]), described.get("made_for"))


class _Described(TypedDict):
    """A calibration's texts."""

    regcache_jax: Literal["calibration"]
    groups: Literal["true", "false"]
    num_images: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")]
    made_for: NotRequired[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]]


def _histogram(path: epath.Path, site: str, tensors: dict[str, np.ndarray], groups: bool) -> Histogram:
    """One site's counts, as `count` makes them. Raises UserError for others."""
    wanted = {"counts": np.int64, "exponent": np.int32, "lower": np.float32, "upper": np.float32}
    found = {name.split("/", 1)[1]: array for name, array in tensors.items() if name.startswith(f"{site}/")}
    apart = 3 if groups and site in SITES else 1
    shape = (*found["exponent"].shape,) if "exponent" in found else ()
    sound = (
        {name: array.dtype for name, array in found.items()} == wanted
        and len(shape) == 2
        and shape[0] > 0
        and shape[1] == apart
        and all(found[name].shape == shape for name in ("lower", "upper"))
        and found["counts"].shape == (*shape, 2 * BINS)
        and bool(np.all(found["counts"] >= 0))
        and bool(np.all(found["exponent"] >= SMALLEST_EXPONENT) and np.all(found["exponent"] <= LARGEST_EXPONENT))
        and bool(np.all(np.isfinite(found["lower"])) and np.all(np.isfinite(found["upper"])))
        and bool(np.all(found["lower"] <= 0) and np.all(found["upper"] >= 0))
    )
    if not sound:
        raise UserError(
            f"{path} is not a calibration file: what it holds of {site} is no histogram of L blocks and {apart} groups"
        )
    return Histogram(*(found[name] for name in wanted))


def _levels(scheme: Scheme, site: str, num_blocks: int) -> Int[np.ndarray, "L"]:
    """The largest integer of a site, a block."""
    return largest_integers([scheme.at(site, block).activation_bits for block in range(num_blocks)])


def site_bounds(
    histogram: Histogram, scheme: Scheme, site: str
) -> tuple[Float[np.ndarray, "L G"], Float[np.ndarray, "L G"]]:
    """Lower and upper end of the range that a scheme takes for a site, a block and token group."""
    symmetric = scheme.symmetric or site not in SITES
    levels = _levels(scheme, site, len(histogram.counts))
    return bounds(histogram, scheme.estimator, scheme.percentile, levels, symmetric)


def _identity(encoder: Encoder) -> str:
    """A hash of the float image tower and its plan."""
    return Digest().text(encoder_hash(encoder)).arrays(jax.tree.leaves(encoder.plan)).hex()


def counters(inputs: Iterable[str], protected: Protected | None) -> dict[str, Callable[[BlockTrace], Counted]]:
    """Collectors of every input's histogram; the sites' by token group if `protected` is given."""
    return {
        site: functools.partial(count, site=site, protected=protected if site in SITES else None) for site in inputs
    }


def add_counts(sites: dict[str, Histogram], counted: dict[str, Counted]) -> dict[str, Histogram]:
    """Histograms with one more batch. Raises UserError where a value is not finite."""
    check_finite({site: jnp.abs(each.lower) + jnp.abs(each.upper) for site, each in counted.items()})
    batch = {site: Histogram.of(each) for site, each in counted.items()}
    return {site: sites[site] + each for site, each in batch.items()} if sites else batch


@dataclasses.dataclass(frozen=True)
class Histograms:
    """A statistic: the histogram of every input."""

    groups: bool
    inputs: tuple[str, ...]

    def of_block(self, trace: BlockTrace, protected: Protected) -> dict[str, Counted]:
        """Those of one block."""
        found = counters(self.inputs, protected if self.groups else None)
        return {site: counter(trace) for site, counter in found.items()}

    def add(self, total: dict[str, Histogram] | None, batch: dict[str, Counted]) -> dict[str, Histogram]:
        """Both, on the host."""
        return add_counts(total or {}, batch)

    def result(self, total: dict[str, Histogram]) -> dict[str, Histogram]:
        """The same."""
        return total


def observe(
    encoder: Encoder,
    batches: Iterable[Float[Array | np.ndarray, "_ Y X 3"]],
    *,
    groups: bool = False,
    inputs: tuple[str, ...] = SITES,
) -> Calibration:
    """Counts what passes every site of a float encoder over the calibration set, its plan in place; with
    `inputs=scheme.inputs` also the inputs of attention's integer products.

    Raises UserError for an empty set, a quantised encoder and values that are not finite."""
    found, num_images = gather(encoder, batches, {"sites": Histograms(groups, inputs)})
    return Calibration(found["sites"], groups, num_images)


@dataclasses.dataclass(frozen=True)
class CalibratedGrids:
    """A statistic: the grids of a scheme, from extremes where those are enough, else from histograms."""

    scheme: Scheme

    @property
    def source(self) -> LargestMagnitudes | Histograms:
        """What they are made of."""
        scheme = self.scheme
        if scheme.symmetric and scheme.estimator == "absmax" and not scheme.rules + scheme.products:
            return LargestMagnitudes(scheme.activations)
        return Histograms(scheme.activations == "group", scheme.inputs)

    def of_block(self, trace: BlockTrace, protected: Protected) -> PyTree:
        """Those of the source."""
        return self.source.of_block(trace, protected)

    def add(self, total: PyTree, batch: PyTree) -> PyTree:
        """That of the source."""
        return self.source.add(total, batch)

    def result(self, total: PyTree) -> dict[str, Grid]:
        """The grid of everything that needs one."""
        source = self.source
        if isinstance(source, Histograms):
            return Calibration(source.result(total), source.groups, num_images=0).grids(self.scheme)
        scales = scales_from_ranges(source.result(total), self.scheme.activation_bits)
        return {site: Grid(scale) for site, scale in scales.items()}


def add_grids(blocks: Block, found: Mapping[str, Grid], scheme: Scheme) -> Block:
    """Puts the grids of what is quantised beside the kernels and folds their offsets into the biases."""
    sites = [site for site in SITES if quantized_cells(scheme, site, blocks.num_blocks).any()]
    products = [site for product in scheme.products for site in PRODUCT_INPUTS[product]]
    blocks = blocks.with_grids({site: found[site].replace(offset=None) for site in sites + products})
    for site in sites:
        offset = found[site].offset
        blocks = blocks if offset is None else add_offset(blocks, site, offset, scheme)
    return blocks
