"""The table of docs/quantization.md: every recipe, with and without registers, over several draws of the calibration images.

    python benchmarks/recipes.py --out build/recipes [--encoder emoji] [--draws 5] [--bits w8a8,w6a6,w4a4] [--recipes ...]

`emoji`: accuracy on the 816 Twemoji pictures, which no calibration or search sees. Planted encoders (`sinks`, `class-token`,
`channel`, `none`): label-free error. Resumable; a draw is one `compare`. Minutes to an hour on a few CPU cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from regcache_jax import Encoder, RegisterPlan, bundled_model, load, load_plan, save_plan, search
from regcache_jax.data import emoji
from regcache_jax.data.batches import load_images
from regcache_jax.data.sources import open_dataset
from regcache_jax.evaluation.zero_shot import class_vectors
from regcache_jax.quantization.compare import Entry, compare, features_of, write_tables
from regcache_jax.quantization.recipes import RECIPES, scheme_of
from regcache_jax.registers.planted import plant

PLANTED = {
    "sinks": ("patch sinks",),
    "class-token": ("class-token outlier",),
    "channel": ("channel outlier",),
    "none": (),
}
Subject = tuple[Encoder, np.ndarray, Callable[[Encoder], dict[str, float]] | None]


def bundled() -> Subject:
    model = load(bundled_model())
    train, test = (open_dataset("emoji", split=split) for split in ("train", "test"))
    images, labels = (
        load_images(test, model.preprocess),
        np.array([concept for _, concept, _ in emoji.pictures("test")]),
    )
    vectors = class_vectors(model.encoder, model.tokenize, emoji.class_names(), emoji.TEMPLATES)

    def evaluate(encoder: Encoder) -> dict[str, float]:
        predicted = np.argmax(features_of(encoder, images, 204) @ vectors.T, axis=1)
        return {"acc1": float(np.mean(predicted == labels))}

    return model.encoder, load_images(train, model.preprocess), evaluate


def planted(name: str) -> Subject:
    found = plant(PLANTED[name], jax.random.key(0), num_images=320)
    return found.encoder, np.asarray(found.images), None


def find_plans(encoder: Encoder, images: np.ndarray, bits: list[str], out: Path) -> dict[str, RegisterPlan]:
    """One plan for each number of bits, found under round-to-nearest; none where registers do not help."""
    plans = {}
    for each in bits:
        path = out / f"{each}.safetensors"
        if not path.exists():
            result = search(encoder, images, scheme_of("rtn", each), table=out / f"search-{each}.jsonl")
            print(each, result.sentence(), file=sys.stderr)
            save_plan(path, result.plan)
        plan, _ = load_plan(path)
        schedule = plan.schedule()
        if schedule.stop > schedule.start or schedule.delete_count:
            plans[each] = plan
    return plans


def report(number: int, total: int, entry: Entry) -> None:
    print(
        f"{number}/{total} {entry.name}: {entry.fault or (entry.error, entry.metrics, entry.seconds)}", file=sys.stderr
    )


def summary(draws: list[list[Entry]], metric: str) -> str:
    """Mean and standard deviation over draws, one row a recipe."""
    values: dict[tuple[str, str, bool], list[float]] = {}
    for entries in draws:
        for e in entries:
            number = e.metrics.get(metric) if metric != "error" else e.error
            if number is not None:
                values.setdefault((e.recipe, e.bits, e.registers), []).append(
                    100 * number if metric != "error" else number
                )
    columns = list(dict.fromkeys((e.bits, e.registers) for e in draws[0]))
    lines = ["| recipe | " + " | ".join(f"{b}{' + registers' if r else ''}" for b, r in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    style = ".1f" if metric != "error" else ".2g"
    for recipe in dict.fromkeys(e.recipe for e in draws[0]):
        cells = [values.get((recipe, *column)) for column in columns]
        texts = [f"{np.mean(c):{style}} ± {np.std(c):{style}}" if c else "-" for c in cells]
        lines.append(f"| {recipe} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", choices=["emoji", *PLANTED], default="emoji")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--calibration", type=int, default=256, help="images a draw; planted encoders take 64")
    parser.add_argument("--bits", type=lambda text: text.split(","), default=["w8a8", "w6a6", "w4a4"])
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=list(RECIPES))
    options = parser.parse_args()
    encoder, images, evaluate = bundled() if options.encoder == "emoji" else planted(options.encoder)
    size = options.calibration if options.encoder == "emoji" else 64
    out = options.out / options.encoder
    plans = find_plans(encoder, images[:size], options.bits, out)
    rest, draws = images[size:-size], []
    for draw in range(options.draws):
        chosen = np.sort(np.random.default_rng(draw).choice(len(rest), size, replace=False))
        entries = compare(
            encoder, rest[chosen], images[-size:], out / f"draw-{draw}",
            recipes=options.recipes, bits=options.bits, plans=plans, evaluate=evaluate, progress=report,
        )  # fmt: skip
        draws.append(entries)
        float_metrics = evaluate(encoder) if evaluate else {}
        write_tables(entries, out / f"draw-{draw}", encoder, dataset=options.encoder, float_metrics=float_metrics)
        table = summary(draws, "acc1" if evaluate else "error")
        (out / "summary.md").write_text(f"{draw + 1} draws; float {json.dumps(float_metrics)}\n\n{table}")
    print(table)


if __name__ == "__main__":
    main()
