"""The whole demo, held to what the README's table says.

python benchmarks/demo.py                # about four minutes; --workdir FOLDER keeps what it makes
"""

import argparse
import tempfile
from pathlib import Path

from regcache_jax.cli.run import load_config, run_and_show
from regcache_jax.files import results

LEAST = {"w8a8": 85.5, "w6a6": 85.0, "w4a4": 79.0}
"""Top-1 in points with the full plan: README's less what one unit in a last place moves between machines."""


def check(rows: list[dict]) -> list[str]:
    """What differs from the README, a line each."""
    accuracy = {
        (entry["scheme"], entry["activations"], entry["plan"], entry["method"]): 100 * row["metrics"]["acc1"]
        for row in rows
        for entry in [row["quantization"]]
    }
    plain = accuracy["float", None, None, None]
    held = {
        "20 rows, each told from every other": len(accuracy) == len(rows) == 2 + 3 * 6,
        "816 pictures in every row": {row["quantization"]["examples"] for row in rows} == {816},
        "the float encoder's 87.0 within a point": abs(plain - 87.0) <= 1.0,
        "a float plan that costs a point at most": accuracy["float", None, "full", None] >= 86.0,
        "plain eight bits lose ten points": accuracy["w8a8", "static", None, "rtn"] <= plain - 10,
    }
    for scheme, least in LEAST.items():
        held[f"{scheme} with registers at least {least}"] = accuracy[scheme, "static", "full", "rtn"] >= least
    return [fact for fact, holds in held.items() if not holds]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(chosen.workdir or kept)
        run_and_show(load_config("demo"), str(folder))
        missed = check(results.read(folder / "results.json"))
    for fact in missed:
        print(f"not so: {fact}")
    raise SystemExit(bool(missed))
