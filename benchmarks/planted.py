"""Planted truth at the size of ViT-B/16: what the engine recovers of sinks that were put there, and what each kind's verdict is.

python benchmarks/planted.py [--images 16] [--width 768 --blocks 12 --heads 12 --pixels 224] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from regcache_jax import Scheme, SearchConfig, inspect, judge
from regcache_jax.files.paths import write_whole
from regcache_jax.studies.planted import KINDS, plant, planted_spec
from regcache_jax.studies.recovery import find_planted, restore_planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    for name, default in (("width", 768), ("blocks", 12), ("heads", 12), ("pixels", 224), ("patch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    shape = (given.width, given.blocks, given.heads, given.pixels, given.patch)

    began = time.monotonic()
    planted = plant(["patch sinks"], spec=planted_spec(*shape), num_images=given.images)
    found = find_planted(planted)
    print(
        f"planted in block {planted.block}, found in block {found.block}; tokens: precision {found.precision:.3f}, recall "
        f"{found.recall:.3f}; direction: cosine {found.cosine:.5f}",
        flush=True,
    )
    config = SearchConfig(copies=(6.0, 15.0), delete_counts=(0,), back=0, registers=(1,), rounds=0, chunk=16)
    restored = restore_planted(planted, Scheme(8, 8), config)
    print(
        f"W8A8 error: without sinks {restored.without_sinks:.3g}, with sinks {restored.with_sinks:.3g}, with the plan "
        f"{restored.with_plan:.3g} ({restored.with_plan / restored.without_sinks - 1:+.1%}); sinks left {restored.sinks_left:g}",
        flush=True,
    )
    verdicts = {}
    for kinds in ((), *((kind,) for kind in KINDS), KINDS):
        spec = planted_spec(*shape, trained_registers=int("trained-register outlier" in kinds))
        each = plant(kinds, spec=spec, num_images=min(8, given.images))
        name, verdict = " + ".join(kinds) or "none", judge(inspect(each.encoder, each.images)).kinds
        verdicts[name] = verdict
        print(f"planted {name}: verdict {' + '.join(verdict)}", flush=True)
    print(f"{time.monotonic() - began:.0f} s")
    if given.json is not None:
        errors = {name: value for name, value in vars(restored).items() if name != "result"}
        tree = {
            "planted_block": planted.block,
            "found": dataclasses.asdict(found),
            "errors": errors,
            "verdicts": verdicts,
        }
        write_whole(given.json, json.dumps(tree, indent=2).encode())


if __name__ == "__main__":
    main()
