"""Does a plan hold on pictures that the search has not seen, and does the search say beforehand what it will do there?

The bundled encoder, plans by the default search on pictures of `train`, calibrated as `quantize` does by default; errors on the 816
pictures of `test` (another vendor's drawings) and on the pictures of `train` that no search of that row has seen. Every seed draws
other reference pictures, other calibration pictures and other pictures that verify. Then the bundled encoder with smaller and larger
outliers (the same function of a picture), and planted encoders with weaker and stronger sinks, and without any.

    python benchmarks/held_out.py [--seeds 10; 0: those of other strengths alone] [--images 256] [--schemes w8a8,w6a6] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from regcache_jax import Scheme, SearchConfig, bundled_model, load, quantize, search
from regcache_jax.core.outputs import feature_errors
from regcache_jax.data import prompts
from regcache_jax.data.batches import load_images
from regcache_jax.data.sources import open_dataset
from regcache_jax.demo.recipe.circuit import Circuit, rescale
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.evaluation.zero_shot import class_vectors
from regcache_jax.files.paths import write_whole
from regcache_jax.studies.grid import features_of
from regcache_jax.studies.planted import FIRING, plant

STRENGTHS = (30.0, 100.0, 300.0, 1000.0, 0.0)
"""What a planted neuron gives, and every channel of a sink; 0: no sinks."""

FACTORS = (1 / 48, 1 / 8, 1.0, 8.0)
"""What the bundled encoder's outliers are multiplied by at the inputs of the blocks after its circuit; 1/48: as they were trained."""

GATE = 4
"""The block of the bundled encoder's circuit (docs/bundled_encoder.md)."""


def strengthened(encoder: Encoder, factor: float) -> Encoder:
    """The bundled encoder with larger or smaller outliers; its features stay as they are. Its massive dimension is the one that the norms
    after the circuit enlarge most."""
    image = encoder.params.image
    massive = int(np.argmax(np.abs(image.blocks.norm1.scale[GATE + 1])))
    circuit = Circuit(GATE, marker=massive, massive=massive, echo=massive)
    return encoder.replace(params=encoder.params.replace(image=rescale(image, circuit, factor)))


class Bundled:
    """The bundled encoder (its outliers times a factor), its pictures and its classes."""

    def __init__(self, factor: float = 1.0) -> None:
        model = load(bundled_model())
        self.encoder, test = strengthened(model.encoder, factor), open_dataset("emoji", split="test")
        self.train = load_images(open_dataset("emoji", split="train"), model.preprocess)
        self.test = load_images(test, model.preprocess)
        self.labels = np.array([test[index].label for index in range(len(test))])
        names, templates = prompts.class_names(test).texts, prompts.templates(test).texts
        self.vectors = class_vectors(self.encoder, model.tokenize, names, templates)
        self.float_train, self.float_test = (features_of(self.encoder, images) for images in (self.train, self.test))

    def row(self, name: str, seed: int, num_images: int) -> dict[str, Any]:
        """One search and one calibration. Seed 0 is what the command line does: the first pictures."""
        order = np.arange(len(self.train)) if seed == 0 else np.random.default_rng(seed).permutation(len(self.train))
        reference, unseen = self.train[order[:num_images]], order[num_images:]
        scheme = Scheme.named(name)
        assert scheme is not None
        found = search(self.encoder, reference, scheme, SearchConfig(seed=seed))
        int8 = quantize(self.encoder, reference[found.parts.working], scheme, found.plan)
        features = features_of(int8, self.test)
        errors = feature_errors(features, self.float_test)
        others = feature_errors(features_of(int8, self.train[unseen]), self.float_train[unseen])
        alone = self.encoder.with_plan(found.plan)
        moved = [feature_errors(features_of(alone, self.test), self.float_test)]
        moved.append(feature_errors(features_of(alone, self.train[unseen]), self.float_train[unseen]))
        answers, float_answers = (np.argmax(rows @ self.vectors.T, axis=1) for rows in (features, self.float_test))
        return {
            "scheme": name,
            "seed": seed,
            "helps": found.helps,
            "without": found.baseline.error,
            "claimed": found.claim.error,
            "spread": found.claim.spread,
            "error_test": float(errors.mean()),
            "error_train": float(others.mean()),
            "moved_test": float(moved[0].mean()),
            "moved_train": float(moved[1].mean()),
            "deviation": float(others.std() / others.mean()),
            "cosine": float(1 - errors.mean() / 2),
            "worst": float(errors.max()),
            "acc1": float((answers == self.labels).mean()),
            "agreement": float((answers == float_answers).mean()),
            "spare": found.spare,
            "trials": len(found.trials),
            "seconds": found.seconds,
            "numbers": dataclasses.asdict(found.numbers),
        }


def planted_row(strength: float) -> dict[str, Any]:
    """A planted encoder: the search sees half of its pictures, the other half tells what came of it."""
    planted = plant(["patch sinks"] if strength else [], num_images=128, firing=strength or FIRING)
    scheme = Scheme(8, 8)
    found = search(planted.encoder, planted.images[:64], scheme)
    int8 = quantize(planted.encoder, planted.images[:64][found.parts.working], scheme, found.plan)
    features = (features_of(each, planted.images[64:]) for each in (int8, planted.encoder))
    return {
        "strength": strength,
        "helps": found.helps,
        "without": found.baseline.error,
        "claimed": found.claim.error,
        "spread": found.claim.spread,
        "error": float(feature_errors(*features).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--schemes", default="w8a8,w6a6")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bundled, rows = Bundled() if arguments.seeds else None, []
    for name in arguments.schemes.split(","):
        for seed in range(arguments.seeds):
            assert bundled is not None
            row = bundled.row(name, seed, arguments.images)
            rows.append(row)
            print(
                f"{name} seed {seed}: claimed {row['claimed']:.3g} +- {row['spread']:.1g}; error on test {row['error_test']:.3g} (worst "
                f"{row['worst']:.2g}, cosine {row['cosine']:.4f}), on unseen train {row['error_train']:.3g} "
                f"(a picture deviates by {row['deviation']:.1f} x); the plan alone {row['moved_test']:.3g}, {row['moved_train']:.3g}; "
                f"top-1 {row['acc1']:.1%}, "
                f"as float {row['agreement']:.1%}; {row['seconds']:.0f} s; {row['numbers']}",
                flush=True,
            )
        for kind in ("error_test", "error_train") if arguments.seeds else ():
            errors = [row[kind] for row in rows if row["scheme"] == name]
            print(
                f"{name}: {kind} {min(errors):.3g} to {max(errors):.3g}, worst over best {max(errors) / min(errors):.2f}"
            )
    rescaled = []
    for factor in FACTORS:
        row = Bundled(factor).row("w8a8", 0, arguments.images)
        rescaled.append({"factor": factor, **row})
        print(
            f"bundled, outliers times {factor:.3g}: {'a plan' if row['helps'] else 'no plan'}; without a plan {row['without']:.3g}, "
            f"claimed {row['claimed']:.3g} +- {row['spread']:.1g}, on unseen train {row['error_train']:.3g}, on test "
            f"{row['error_test']:.3g}, top-1 {row['acc1']:.1%}, as float {row['agreement']:.1%}; {row['numbers']}",
            flush=True,
        )
    planted = [planted_row(strength) for strength in STRENGTHS]
    for row in planted:
        what = f"without a plan {row['without']:.3g}, claimed {row['claimed']:.3g} +- {row['spread']:.1g}, unseen {row['error']:.3g}"
        print(f"planted, strength {row['strength']:g}: {'a plan' if row['helps'] else 'no plan'}; {what}", flush=True)
    if arguments.json is not None:
        write_whole(
            arguments.json, json.dumps({"bundled": rows, "rescaled": rescaled, "planted": planted}, indent=2).encode()
        )


if __name__ == "__main__":
    main()
