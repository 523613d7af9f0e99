"""RegCache beside its simple rivals on the bundled encoder: top-1 on the 816 Twemoji pictures that no search has seen.

python benchmarks/rivals.py [--images 256] [--schemes w8a8,w6a6,w4a4] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from regcache_jax import Encoder, Scheme, bundled_model, load, search
from regcache_jax.data import prompts
from regcache_jax.data.batches import load_images
from regcache_jax.data.sources import open_dataset
from regcache_jax.evaluation.zero_shot import class_vectors
from regcache_jax.files.paths import write_whole
from regcache_jax.studies.grid import Bench, Judge, mean_error
from regcache_jax.studies.rivals import rivals

PAIRS = (
    ("RegCache", "percentile clipping"),
    ("RegCache", "test-time registers"),
    ("RegCache with percentile clipping", "percentile clipping"),
)
"""Whose top-1 is compared picture by picture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="pictures for search and calibration")
    parser.add_argument("--schemes", default="w8a8,w6a6,w4a4")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load(bundled_model())
    reference = load_images(open_dataset("emoji", split="train", limit=arguments.images), model.preprocess)
    dataset = open_dataset("emoji", split="test")
    pictures = load_images(dataset, model.preprocess)
    labels = np.array([dataset[index].label for index in range(len(dataset))])
    names, templates = prompts.class_names(dataset).texts, prompts.templates(dataset).texts
    vectors = class_vectors(model.encoder, model.tokenize, names, templates)
    right: list[np.ndarray] = []
    rows = []

    def judge(features: np.ndarray) -> dict[str, float]:
        answers, as_float = (np.argmax(each @ vectors.T, axis=1) for each in (features, bench.reference.pooled))
        right.append((answers == labels).astype(float))
        return {"acc1": right[-1].mean(), "agreement": (answers == as_float).mean()}

    bench = Bench(model.encoder, reference, pictures, judge=Judge("top-1 on Twemoji", judge))

    def show(scheme: str, name: str, encoder: Encoder) -> np.ndarray:
        errors, metrics = bench.measured(encoder)
        error = mean_error(errors)
        rows.append({"scheme": scheme, "name": name, "error": error, **metrics})
        print(
            f"{scheme:6s} {name:34s} top-1 {metrics['acc1']:6.1%}  error of the features {error:.4g}  answers as float "
            f"{metrics['agreement']:.1%}",
            flush=True,
        )
        return right[-1]

    show("float", "float", model.encoder)
    for name in arguments.schemes.split(","):
        scheme = Scheme.named(name)
        result = search(model.encoder, reference, scheme)
        table = rivals(model.encoder, reference, scheme, result)
        shown = {rival: show(name, rival, encoder) for rival, encoder in table}
        for ours, other in PAIRS:
            gap = shown[ours] - shown[other]
            print(f"{name:6s} {ours} - {other}: {gap.mean():+.1%}, standard error {gap.std() / len(gap) ** 0.5:.1%}")
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps(rows, indent=2).encode())


if __name__ == "__main__":
    main()
