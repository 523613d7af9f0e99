"""Plans found by one objective, measured by all: the error of the patch tokens beside that of the pooled feature, on unseen pictures.

python benchmarks/objectives.py [--bundled] [--images 128] [--scheme w8a8] [--json FILE]

A planted encoder (or the bundled one, on its reference pictures) is searched with each objective on three quarters of the pictures; the
others measure. Patches are searched once without deletion, as is the default, and once with it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from regcache_jax import Encoder, Scheme, SearchConfig, bundled_model, load, plant, quantize, search
from regcache_jax.core.outputs import image_errors
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.data import load_images, open_dataset
from regcache_jax.files.paths import write_whole
from regcache_jax.registers.outputs import outputs_of
from regcache_jax.registers.sinks import find_sinks

WAYS = {
    "pooled": SearchConfig(objective="pooled"),
    "patches": SearchConfig(objective="patches"),
    "patches, deletion allowed": SearchConfig(objective="patches", delete_counts=(0, 3, 8)),
    "both": SearchConfig(objective="both"),
}


def pictures_and_encoder(bundled: bool, count: int) -> tuple[np.ndarray, Encoder]:
    if not bundled:
        planted = plant(["patch sinks"], num_images=count)
        return planted.images, planted.encoder
    model = load(bundled_model())
    return load_images(open_dataset("emoji", split="train", limit=count), model.preprocess), model.encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundled", action="store_true")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--scheme", default="w8a8")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    images, encoder = pictures_and_encoder(given.bundled, given.images)
    scheme = Scheme.named(given.scheme)
    assert scheme is not None
    known, unseen = np.split(images, [3 * len(images) // 4])
    exact = outputs_of(encoder, unseen, patches=True)

    def errors(measured: Encoder) -> dict[str, float]:
        found = outputs_of(measured, unseen, patches=True)
        return {word: float(image_errors(word, found, exact).mean()) for word in ("pooled", "patches")}

    at_sinks = find_sinks(encoder, unseen).any(axis=0)[:, encoder.spec.image.num_protected :]

    def share_at_sinks(plan: RegisterPlan) -> float:
        """The part of what a plan alone moves the patch tokens that lies where sinks were."""
        moved = outputs_of(encoder.with_plan(plan), unseen, patches=True).patches - np.asarray(exact.patches)
        squares = np.square(moved).sum(axis=2)
        return float(squares[at_sinks].sum() / squares.sum())

    def row(plan: RegisterPlan | None) -> dict[str, Any]:
        found = {"int8": errors(quantize(encoder, known, scheme, plan)), "float": errors(encoder.with_plan(plan))}
        return found if plan is None else {**found, "share at sinks": share_at_sinks(plan)}

    rows = {"no plan": row(None)}
    for name, config in WAYS.items():
        result = search(encoder, known, scheme, config)
        rows[name] = row(result.plan)
        print(f"{name}: {result.numbers}; {result.sentence()}", *result.remarks(), sep="\n  ", flush=True)
    print(
        f"\n{'plan found by':<28} pooled   patches  | the plan alone, in float: pooled   patches  (of it where sinks were)"
    )
    for name, found in rows.items():
        figures = [found[kind][word] for kind in ("int8", "float") for word in ("pooled", "patches")]
        line = f"{name:<28} {figures[0]:<8.3g} {figures[1]:<8.3g} | {'':<25} {figures[2]:<8.3g} {figures[3]:<8.3g}"
        print(f"{line} {found.get('share at sinks', 0):.3f}")
    if given.json is not None:
        write_whole(given.json, json.dumps(rows, indent=2).encode())


if __name__ == "__main__":
    main()
