"""Registers and clipping together at four bits, and which label-free objective foretells accuracy on unseen pictures.

Bundled encoder: the range's estimator is varied, without registers, with the plan that `search` finds, and with plans beside it. For
every combination: top-1 on the 816 Twemoji pictures that nothing has seen, and objectives on the reference pictures. Then the rank
correlation of each objective with that top-1.

    python benchmarks/clipping.py [--images 256] [--scheme w4a4] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from regcache_jax import Encoder, Scheme, bundled_model, load, quantize
from regcache_jax.core.outputs import feature_errors
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.data import prompts
from regcache_jax.data.batches import load_images
from regcache_jax.data.cut import in_batches
from regcache_jax.data.sources import open_dataset
from regcache_jax.evaluation.zero_shot import class_vectors
from regcache_jax.files.paths import write_whole
from regcache_jax.quantization.calibration import observe
from regcache_jax.registers.search.engine import Search
from regcache_jax.registers.search.space import Numbers
from regcache_jax.studies.grid import features_of

PERCENTILES = (99.999, 99.99, 99.97, 99.9, 99.7, 99.5, 99.0, 98.5)
ESTIMATORS = (
    {},
    *({"estimator": "percentile", "percentile": share} for share in PERCENTILES),
    {"estimator": "mse"},
    {"estimator": "entropy"},
)
BESIDE = ((3, 3.6), (3, 8.0), (4, 6.0), (4, 15.0), (2, 15.0))
"""Start and copies of the plans beside the one that is found."""


def centred(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(axis=0)


def gram(rows: np.ndarray) -> np.ndarray:
    return centred(rows) @ centred(rows).T


def relative(rows: np.ndarray, reference: np.ndarray) -> float:
    return float(np.square(rows - reference).sum() / np.square(reference).sum())


def divergence(logits: np.ndarray, reference: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the classes' probabilities from the float encoder's."""
    log_p, log_q = (each - np.logaddexp.reduce(each, axis=1, keepdims=True) for each in (reference, logits))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def objectives(features: np.ndarray, reference: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    """What a search could minimise without labels, on the reference pictures."""
    logits, wanted = 100 * features @ vectors.T, 100 * reference @ vectors.T
    return {
        "error of the features": float(feature_errors(features, reference).mean()),
        "its median": float(np.median(feature_errors(features, reference))),
        "error of the centred features": relative(centred(features), centred(reference)),
        "error of the products between pictures": relative(gram(features), gram(reference)),
        "divergence of the classes": divergence(logits, wanted),
        "other answers than float": float((logits.argmax(axis=1) != wanted.argmax(axis=1)).mean()),
    }


def rank_correlation(one: list[float], other: list[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="pictures for search and calibration")
    parser.add_argument("--scheme", default="w4a4")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = load(bundled_model())
    scheme = Scheme.named(given.scheme)
    assert scheme is not None
    reference = load_images(open_dataset("emoji", split="train", limit=given.images), model.preprocess)
    dataset = open_dataset("emoji", split="test")
    pictures = load_images(dataset, model.preprocess)
    labels = np.array([dataset[index].label for index in range(len(dataset))])
    names, templates = prompts.class_names(dataset).texts, prompts.templates(dataset).texts
    vectors = class_vectors(model.encoder, model.tokenize, names, templates)
    wanted, unseen = features_of(model.encoder, reference), features_of(model.encoder, pictures)
    rows: list[dict[str, Any]] = []

    def show(name: str, encoder: Encoder, estimators: tuple[dict[str, Any], ...]) -> None:
        counted = observe(encoder, in_batches(reference, fill=False))
        for options in estimators:
            own = dataclasses.replace(scheme, **options)
            quantized = quantize(encoder, None, own, calibration=counted)
            features = features_of(quantized, pictures)
            rows.append(
                {
                    "registers": name,
                    "range": f"{own.percentile} %" if own.estimator == "percentile" else own.estimator,
                    "acc1": float((np.argmax(features @ vectors.T, axis=1) == labels).mean()),
                    "unseen error": float(feature_errors(features, unseen).mean()),
                    **objectives(features_of(quantized, reference), wanted, vectors),
                }
            )
            row = rows[-1]
            print(
                f"{name:34s} {row['range']:9s} top-1 {row['acc1']:6.1%}  error {row['unseen error']:.3g} (reference "
                f"{row['error of the features']:.3g})",
                flush=True,
            )

    engine = Search(model.encoder, reference, scheme, SearchConfig())
    best, _ = engine.run()
    show("none", model.encoder, ESTIMATORS)
    show("the plan that is found", model.encoder.with_plan(engine.plan(best)), ESTIMATORS)
    some = tuple(
        options
        for options in ESTIMATORS
        if options.get("percentile") in (None, 99.9, 99.7) and options.get("estimator") in (None, "percentile")
    )
    for start, copies in BESIDE:
        plan = engine.plan(Numbers(start, engine.space.num_blocks, copies, engine.space.sensitive_block, 0))
        show(f"from block {start} on, {copies:g} copies", model.encoder.with_plan(plan), some)
    with_registers = [row for row in rows if row["registers"] != "none"]
    for name in objectives(wanted, wanted, vectors):
        correlations = [
            rank_correlation([-row[name] for row in group], [row["acc1"] for row in group])
            for group in (rows, with_registers)
        ]
        print(
            f"{name:40s} rank correlation with top-1: all {correlations[0]:.2f}, with registers {correlations[1]:.2f}"
        )
    if given.json is not None:
        write_whole(given.json, json.dumps(rows, indent=2).encode())


if __name__ == "__main__":
    main()
