"""What a recipe takes to quantise: processor seconds and peak memory, of a random encoder at real size, each in a process of its own.

python benchmarks/recipe_cost.py [--name facebook/dinov2-small] [--images 64] [--recipes rtn,smoothquant,strong]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import jax
import numpy as np

from regcache_jax import quantize
from regcache_jax.encoders import catalog
from regcache_jax.encoders.encoder import Encoder, init_params
from regcache_jax.studies.recipes import scheme_of


def used() -> tuple[float, float]:
    """Processor seconds and the peak of resident memory, in GiB, of this process."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime, own.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="facebook/dinov2-small")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--recipes", default="rtn,smoothquant,strong")
    arguments = parser.parse_args()
    recipes = arguments.recipes.split(",")
    if len(recipes) > 1:
        for recipe in recipes:
            options = ["--name", arguments.name, "--images", str(arguments.images), "--recipes", recipe]
            subprocess.run([sys.executable, __file__, *options], check=True)
        return
    spec = catalog.get(arguments.name).spec
    encoder = Encoder(spec=spec, params=init_params(spec, jax.random.key(0)))
    shape = (arguments.images, *spec.image.picture_shape)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    seconds, memory = used()
    quantize(encoder, images, scheme_of(recipes[0], "w8a8"))
    after, peak = used()
    print(f"{recipes[0]}: {after - seconds:.0f} s of processors, peak {peak:.2f} GiB ({memory:.2f} before)", flush=True)


if __name__ == "__main__":
    main()
