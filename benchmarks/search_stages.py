"""Where the processor seconds of a search go, stage by stage, on the model that `benchmarks/real_size.py --work DIR` has converted.

    python benchmarks/search_stages.py DIR/model [--images 64] [--trials 12]

Processor seconds, unlike those of the clock, are not stretched by what else runs on a machine.
"""

from __future__ import annotations

import argparse
import functools
import resource
from typing import Any

import jax

from regcache_jax import Scheme, SearchConfig, load, search
from regcache_jax.data.batches import load_images
from regcache_jax.data.sources import open_dataset
from regcache_jax.registers.search import engine, margins, scores, trial

STAGES = (
    ("sensitive block", engine, "find_sensitive_block"),
    ("float and quantised run of the set", engine, "Trials"),
    ("trial", scores.Scores, "score"),
    ("what a plan has to spare", margins.Margins, "_find_spare"),
    ("outputs of held-out pictures", trial.Trials, "unseen_outputs"),
)
"""Each is timed wherever it is called; none calls another."""


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(label: str, function: Any) -> Any:
    """The function, saying how long each call took."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        before = processor_seconds()
        result = jax.block_until_ready(function(*args, **options))
        print(f"{processor_seconds() - before:7.1f}  {label}", flush=True)
        return result

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--trials", type=int, default=12)
    arguments = parser.parse_args()
    for label, owner, name in STAGES:
        setattr(owner, name, timed(label, getattr(owner, name)))
    model = load(arguments.model)
    images = load_images(open_dataset("emoji", split="train", limit=arguments.images), model.preprocess)
    before = processor_seconds()
    found = search(model.encoder, images, Scheme(8, 8), SearchConfig(max_trials=arguments.trials))
    print(f"{processor_seconds() - before:7.1f}  all; {found.block_flops:.3g} block operations")
    print(found.sentence())


if __name__ == "__main__":
    main()
