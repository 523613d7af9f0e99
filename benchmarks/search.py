"""What the search costs beside the published grid (start x copies 1..15 x delete count 0..10), on one encoder and set.

Both score plans by the same bound over the same draws of the same images, from the same kept states, and choose by the same rule, so
the grid is given every saving but the choice of what to try. Then the time that a search would take on a TPU, from the compiler's cycles.

    python benchmarks/search.py [--images 128] [--scheme w8a8] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from regcache_jax import Scheme, SearchConfig, bundled_model, load, search
from regcache_jax.data.batches import load_images
from regcache_jax.data.sources import open_dataset
from regcache_jax.files.paths import write_whole
from regcache_jax.registers.search.engine import Search
from regcache_jax.registers.search.parts import split
from regcache_jax.registers.search.programs import block_flops, compilations
from regcache_jax.registers.search.result import SearchResult
from regcache_jax.registers.search.space import Numbers

COPIES = range(1, 16)
DELETE_COUNTS = range(11)

# ViT-B/16 at 224 px, batch 32, one v5e core: cycles an image (docs/performance.md), the chip's clock, the paper's set.
FLOAT_CYCLES, INT8_CYCLES, CLOCK, PAPER_IMAGES = 408_367, 355_396, 1.5e9, 50_000


def brute_force(encoder: Any, images: np.ndarray, scheme: Scheme, config: SearchConfig) -> dict[str, Any]:
    began, compiled = time.monotonic(), compilations()
    engine = Search(encoder, images, scheme, config)
    l_q, num_blocks = engine.space.sensitive_block, engine.space.num_blocks
    points = [
        Numbers(start, num_blocks, float(copies), l_q, count)
        for start, copies, count in itertools.product(engine.space.starts, COPIES, DELETE_COUNTS)
    ]
    engine.scores.score(engine.space.nothing, engine.scores.total)
    for number, point in enumerate(points):
        engine.scores.score(point, engine.scores.total)
        if number % 20 == 19 and sys.stderr.isatty():
            print(f"\rgrid {number + 1}/{len(points)}, best {engine.scores.best_bound:.4g}", end="", file=sys.stderr)
    best = engine.choose()
    return {
        "block_flops": engine.scores.block_flops,
        "seconds": time.monotonic() - began,
        "compilations": compilations() - compiled,
        "objective": engine.scores.score(best, engine.scores.total),
        "least": engine.scores.best_bound,
        "trials": len(points),
        "numbers": vars(best),
    }


def summary(result: SearchResult) -> dict[str, Any]:
    return {
        "block_flops": result.block_flops,
        "seconds": result.seconds,
        "compilations": result.compilations,
        "objective": result.bound,
        "least": min(row["error"] for row in result.trials if row["images"] == len(result.parts.working)),
        "trials": len(result.trials),
        "numbers": vars(result.numbers),
    }


def projection(cost: dict[str, Any], encoder: Any, num_images: int) -> float:
    """Minutes for CLIP-B/16 and the paper's set on one v5e core: half the passes are float, half int8."""
    spec = encoder.spec.image
    passes = cost["block_flops"] / (num_images * spec.blocks.num_blocks * block_flops(spec.blocks, spec.num_tokens))
    return passes * PAPER_IMAGES * (FLOAT_CYCLES + INT8_CYCLES) / 2 / CLOCK / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--scheme", default="w8a8")
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load(bundled_model())
    images = load_images(open_dataset("emoji", split="train", limit=arguments.images), model.preprocess)
    scheme = Scheme.named(arguments.scheme)
    assert scheme is not None
    config = SearchConfig(chunk=arguments.chunk)
    jax.clear_caches()  # each counts its own programs
    found = {"search": summary(search(model.encoder, images, scheme, config))}
    jax.clear_caches()
    working = images[split(len(images), config.verify_share, config.seed).working]
    found = {"grid": brute_force(model.encoder, working, scheme, config), **found}
    for name, cost in found.items():
        cost["v5e_minutes"] = projection(cost, model.encoder, len(working))
        print(
            f"{name:7s} {cost['trials']:4d} trials  {cost['block_flops']:.3g} block operations  {cost['seconds']:6.1f} s  "
            f"{cost['compilations']} programs  bound {cost['objective']:.4g} (least {cost['least']:.4g})  {cost['numbers']}"
        )
    ratio = found["grid"]["block_flops"] / found["search"]["block_flops"]
    worse = found["search"]["objective"] / found["grid"]["objective"] - 1
    print(f"the search ran {ratio:.1f} times fewer block operations; its bound is {worse:+.1%} of the grid's")
    print(
        f"CLIP-B/16, {PAPER_IMAGES:,} images, one v5e core (compiler's cycles, not measured): "
        + ", ".join(f"{name} {cost['v5e_minutes']:.0f} min" for name, cost in found.items())
    )
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps(found, indent=2).encode())


if __name__ == "__main__":
    main()
