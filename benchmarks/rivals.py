"""RegCache beside its simple rivals on the bundled encoder: top-1 on the 816 Twemoji pictures that no search has seen.

python benchmarks/rivals.py [--images 256] [--schemes w8a8,w6a6,w4a4] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from regcache_jax import Scheme, bundled_model, load, search
from regcache_jax.data import prompts
from regcache_jax.data.batches import load_images
from regcache_jax.data.sources import open_dataset
from regcache_jax.evaluation.zero_shot import class_vectors
from regcache_jax.files.paths import write_whole
from regcache_jax.registers.search.trial import feature_errors
from regcache_jax.studies.rivals import features_of, rivals

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
    float_features = features_of(model.encoder, pictures)
    right: dict[str, np.ndarray] = {}
    rows = []

    def show(scheme: str, name: str, features: np.ndarray) -> None:
        answers = np.argmax(features @ vectors.T, axis=1)
        right[name] = (answers == labels).astype(float)
        agreement = float((answers == np.argmax(float_features @ vectors.T, axis=1)).mean())
        error = float(feature_errors(features, float_features).mean())
        rows.append(
            {"scheme": scheme, "name": name, "acc1": float(right[name].mean()), "error": error, "agreement": agreement}
        )
        print(
            f"{scheme:6s} {name:34s} top-1 {right[name].mean():6.1%}  error of the features {error:.4g}  answers as float "
            f"{agreement:.1%}",
            flush=True,
        )

    show("float", "float", float_features)
    for name in arguments.schemes.split(","):
        scheme = Scheme.named(name)
        result = search(model.encoder, reference, scheme)
        for rival, encoder in rivals(model.encoder, reference, scheme, result):
            show(name, rival, features_of(encoder, pictures))
        for ours, other in PAIRS:
            gap = right[ours] - right[other]
            print(f"{name:6s} {ours} - {other}: {gap.mean():+.1%}, standard error {gap.std() / len(gap) ** 0.5:.1%}")
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps(rows, indent=2).encode())


if __name__ == "__main__":
    main()
