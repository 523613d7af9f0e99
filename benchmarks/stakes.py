"""What each planted outlier costs, and what remedies leave: the verdict's sentences on planted encoders and the bundled one.

python benchmarks/stakes.py [--images 16] [--scheme w8a8]
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from regcache_jax import Encoder, Scheme, bundled_model, inspect, judge, load, plant, quantize
from regcache_jax.data import load_images, open_dataset
from regcache_jax.registers.remedies import try_remedies
from regcache_jax.registers.stakes import measure_stakes
from regcache_jax.studies.grid import features_of, label_free_error
from regcache_jax.studies.planted import KINDS


def report(name: str, encoder: Encoder, images: np.ndarray, scheme: Scheme) -> None:
    profile = inspect(encoder, images)
    stakes = measure_stakes(encoder, images, scheme, profile)
    stakes = dataclasses.replace(stakes, remedies=try_remedies(encoder, images, scheme, profile))
    verdict = judge(profile, stakes=stakes)
    real = label_free_error(features_of(quantize(encoder, images, scheme), images), features_of(encoder, images))
    print(f"{name}: {verdict.where}; error {stakes.plain:.4g} simulated, {real:.4g} real")
    for line in (*(finding.sentence() for finding in verdict.findings), verdict.carried, *stakes.sentences()):
        print(f"  {line}" if line else "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--scheme", default="w8a8")
    given = parser.parse_args()
    scheme = Scheme.named(given.scheme)
    assert scheme is not None
    for kinds in ((), *((kind,) for kind in KINDS), KINDS):
        planted = plant(kinds, num_images=given.images)
        report(" + ".join(kinds) or "nothing planted", planted.encoder, planted.images, scheme)
    model = load(bundled_model())
    report(
        "bundled",
        model.encoder,
        load_images(open_dataset("emoji", limit=given.images, split="train"), model.preprocess),
        scheme,
    )


if __name__ == "__main__":
    main()
