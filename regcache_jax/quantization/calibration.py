"""A calibration that is kept: histograms of every site, from one streamed run, that give ranges under any estimator."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from jaxtyping import Array, Float

from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.vision import image_features
from regcache_jax.errors import UserError
from regcache_jax.quantization.calibrate import check_finite
from regcache_jax.quantization.histogram import (
    Counted,
    Histogram,
    bounds,
    count,
    largest_integers,
    scale_and_zero_point,
)
from regcache_jax.quantization.scheme import SITES, Scheme


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What passed every site of a float encoder. `groups`: class token, trained registers and patches are counted apart."""

    sites: dict[str, Histogram]
    groups: bool
    num_images: int

    def scales(self, scheme: Scheme) -> dict[str, dict[str, Float[np.ndarray, "L *G"]]]:
        """`input_scale` and, if not symmetric, `zero_point` of every site: `[L]`, or `[L, 3]` for token groups.

        Raises UserError where the calibration counted the groups together and the scheme wants them apart, or the reverse."""
        if self.groups != (scheme.activations == "group"):
            have, want = ("apart", "together") if self.groups else ("together", "apart")
            raise UserError(
                f"the calibration counted class token, registers and patches {have}, {scheme.activations} scales need them "
                f"{want}; calibrate again"
            )
        scales, zero_points = {}, {}
        for site, histogram in self.sites.items():
            levels = largest_integers(
                [scheme.at(site, block).activation_bits for block in range(len(histogram.counts))]
            )
            ends = bounds(histogram, scheme.estimator, scheme.percentile, levels, scheme.symmetric)
            scale, zero_point = scale_and_zero_point(*ends, levels[:, None])
            scales[site] = scale if self.groups else scale[:, 0]
            zero_points[site] = zero_point[:, 0]
        return {"input_scale": scales} if scheme.symmetric else {"input_scale": scales, "zero_point": zero_points}

    def save(self, path: epath.PathLike) -> None:
        """Writes one safetensors file, beside its name and then renamed."""
        path = epath.Path(path)
        tensors = {
            f"{site}/{field.name}": np.ascontiguousarray(getattr(histogram, field.name))
            for site, histogram in self.sites.items()
            for field in dataclasses.fields(Histogram)
        }
        metadata = {
            "regcache_jax": "calibration",
            "groups": json.dumps(self.groups),
            "num_images": str(self.num_images),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(safetensors.numpy.save(tensors, metadata))
        partial.rename(path)

    @classmethod
    def load(cls, path: epath.PathLike) -> Calibration:
        """Reads what `save` wrote. Raises UserError for another file."""
        data = epath.Path(path).read_bytes()
        try:
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length])["__metadata__"]
            tensors = safetensors.numpy.load(data)
            names = [field.name for field in dataclasses.fields(Histogram)]
            sites = {site: Histogram(*(tensors[f"{site}/{name}"] for name in names)) for site in SITES}
            return cls(sites, json.loads(metadata["groups"]), int(metadata["num_images"]))
        except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} is not a calibration file: {error}") from None


@functools.partial(jax.jit, static_argnames=("spec", "groups"))
def _batch_counts(params: Any, images: Any, plan: Any, *, spec: Any, groups: bool) -> dict[str, Counted]:
    leading = spec.leading if groups else None
    collectors = {site: functools.partial(count, site=site, leading=leading) for site in SITES}
    return image_features(params, images, spec, plan=plan, collect=collectors).collected


def observe(
    encoder: Encoder, batches: Iterable[Float[Array | np.ndarray, "B Y X 3"]], *, groups: bool = False
) -> Calibration:
    """Counts what passes every site of a float encoder over the calibration set, its plan in place.

    Raises UserError for an empty set, a quantised encoder and values that are not finite."""
    if encoder.scheme is not None:
        raise UserError(
            f"{encoder.spec.name} is quantised already ({encoder.scheme.name}); calibrate the float encoder"
        )
    sites: dict[str, Histogram] = {}
    num_images = 0
    for images in batches:
        images = jnp.asarray(images, encoder.dtype)
        counted = _batch_counts(encoder.params["image"], images, encoder.plan, spec=encoder.spec.image, groups=groups)
        check_finite({site: jnp.abs(each.lower) + jnp.abs(each.upper) for site, each in counted.items()})
        batch = {site: Histogram.of(each) for site, each in counted.items()}
        sites = {site: sites[site] + batch[site] for site in SITES} if sites else batch
        num_images += images.shape[0]
    if not sites:
        raise UserError("calibration needs at least one image, got none")
    return Calibration(sites, groups, num_images)
