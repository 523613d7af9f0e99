"""The whole flow at real size: a random CLIP ViT-B/16 in Hugging Face's layout, with times and peak memory by stage.

    python benchmarks/real_size.py [--json FILE] [--work DIR]

Converted, inspected, searched on 64 pictures with a small budget, quantised, evaluated on 256 pictures. The weights are random, so the
accuracy means nothing; what is measured is what the stages take. With --work, what was made and measured stays in DIR, and a
benchmark that was stopped goes on behind its last finished stage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from regcache_jax.converters.engine import disassemble
from regcache_jax.converters.huggingface_clip import RULES
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from regcache_jax.core.names import to_tree
from regcache_jax.encoders import catalog
from regcache_jax.encoders.parameters import parameter_shapes

NAME = "openai/clip-vit-base-patch16"


def random_checkpoint(folder: Path) -> None:
    """A folder as the hub has it: config.json, model.safetensors, tokenizer.json; all weights random."""
    spec = catalog.get(NAME).spec
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return (0.02 * rng.standard_normal(leaf.shape)).astype(np.float32)

    folder.mkdir()
    drawn = jax.tree.map(draw, to_tree(parameter_shapes(spec)))
    save_file(disassemble(drawn, RULES), folder / "model.safetensors")
    config = {"model_type": "clip", "_name_or_path": NAME, "vision_config": {"patch_size": 16}, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(config))  # what it leaves out has the values of CLIP B/32
    vocabulary = {chr(code): code for code in range(32, 127)} | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    Tokenizer(models.WordLevel(vocabulary, unk_token=" ")).save(str(folder / "tokenizer.json"))


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of all cores' work (which other programs on the machine do not stretch), and peak resident
    GiB of one command."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "regcache_jax.cli", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"regcache {' '.join(command)} failed")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main() -> None:
    """Runs the stages and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = run_stages(root)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def run_stages(root: Path) -> list[dict]:
    """Runs the stages that the folder has no figures of; prints and returns all rows."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "checkpoint" / "tokenizer.json").exists():
        shutil.rmtree(root / "checkpoint", ignore_errors=True)
        random_checkpoint(root / "checkpoint")
    model, plan, table, model8 = (str(root / name) for name in ("model", "plan.safetensors", "trials.jsonl", "model8"))
    data = ["--dataset", "emoji", "--batch-size", "16"]
    few, small = [*data, "--limit", "64"], ["--max-trials", "12", "--table", table]
    stages = {
        "convert": ["convert", str(root / "checkpoint"), "--out", model],
        "inspect, 64 pictures, the verdict": ["inspect", model, *few, "--sensitivity-images", "0"],
        "inspect, 64 pictures, and what is measured on 16": ["inspect", model, *few],
        "search, 64 pictures, 12 trials": ["search", model, *few, *small, "--out", plan],
        "quantize, 64 pictures": ["quantize", model, *few, "--registers", plan, "--out", model8],
        "evaluate float, 256 pictures": ["evaluate", model, *data, "--limit", "256"],
        "evaluate int8, 256 pictures": ["evaluate", model8, *data, "--limit", "256"],
    }
    measured = root / "rows.json"
    rows = json.loads(measured.read_text()) if measured.exists() else []
    print("stage\tseconds\tCPU seconds\tpeak GiB")
    for stage, command in stages.items():
        if stage not in [row["stage"] for row in rows]:
            seconds, work, peak = measure(command)
            rows.append({"stage": stage, "seconds": seconds, "cpu_seconds": work, "peak_gib": peak})
            measured.write_text(json.dumps(rows, indent=2) + "\n")
        row = next(row for row in rows if row["stage"] == stage)
        print(f"{stage}\t{row['seconds']:.1f}\t{row['cpu_seconds']:.1f}\t{row['peak_gib']:.2f}", flush=True)
    return rows


if __name__ == "__main__":
    main()
