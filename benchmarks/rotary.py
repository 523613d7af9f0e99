"""Registers under rotary positions: keys without a position against keys of their sources' places, on planted encoders.

What decides is how far the head that makes the sinks turns with the place (`--bases`: the smaller the base, the further), and whether
sinks stand anywhere or always in one corner.

python benchmarks/rotary.py [--images 32] [--bases 100 10 4]
"""

from __future__ import annotations

import argparse

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from regcache_jax import Scheme
from regcache_jax.core.plan import make_plan
from regcache_jax.core.spec import ImageSpec, Rotary
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.quantization.quantize import quantize
from regcache_jax.registers.candidates import find_candidates, registers_from
from regcache_jax.studies.grid import features_of, label_free_error
from regcache_jax.studies.planted import MARKERS, Planted, plant, planted_spec

COPIES = (3.0, 6.0, 15.0, 40.0)


def in_the_corner(planted: Planted, spec: ImageSpec) -> Float[np.ndarray, "n Y X 3"]:
    """The same pictures with their marker patches moved to the first places of the grid."""
    images, size = planted.images.copy(), spec.patch_size
    for number, marked in enumerate(planted.tokens[:, spec.num_protected :]):
        for place, source in enumerate(np.flatnonzero(marked)[:MARKERS]):
            parts = []
            for index in (place, source):
                row, column = divmod(int(index), spec.grid)
                parts.append((number, slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size)))
            first, second = images[parts[0]].copy(), images[parts[1]].copy()
            images[parts[0]], images[parts[1]] = second, first
    return images


def errors(planted: Planted, plain: Encoder, images: Float[np.ndarray, "n Y X 3"]) -> dict[str, list[float]]:
    """Errors of W8A8 without a plan and with one of each rule, for every number of copies."""
    reference, scheme = features_of(plain, images, 16), Scheme(8, 8)

    def error(encoder: Encoder, copies: float | None, rows: tuple) -> float:
        plan = None if copies is None else make_plan(*rows, copies=copies, start=planted.block)
        quantised = quantize(encoder, jnp.asarray(images), scheme, plan)
        return label_free_error(features_of(quantised, images, 16), reference)

    found = {
        "without sinks": [error(plain, None, ())],
        "no registers": [error(planted.encoder, None, ())],
    }
    for position in ("none", "source"):
        start = planted.block + 1
        candidates = find_candidates(planted.encoder, images, [start], count=len(images), position=position)
        rows = registers_from(candidates, 0)[:2]
        found[position] = [error(planted.encoder, copies, rows) for copies in COPIES]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--bases", type=float, nargs="+", default=[100.0, 10.0, 4.0])
    given = parser.parse_args()
    print(f"copies: {', '.join(f'{copies:g}' for copies in COPIES)}")
    for base in given.bases:
        spec = planted_spec(rotary=Rotary(base))
        planted, plain = (plant(kinds, spec=spec, num_images=given.images) for kinds in (["patch sinks"], []))
        for where, images in (("anywhere", planted.images), ("in one corner", in_the_corner(planted, spec.image))):
            for rule, measured in errors(planted, plain.encoder, images).items():
                said = " ".join(f"{error:.3g}" for error in measured)
                print(f"base {base:g}, sinks {where}, {rule}: {said}", flush=True)


if __name__ == "__main__":
    main()
