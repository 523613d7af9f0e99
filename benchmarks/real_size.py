"""The whole flow at real size: a random CLIP ViT-B/16 in Hugging Face's layout, with times and peak memory by stage.

    python benchmarks/real_size.py [--json FILE]

Converted, searched on 64 pictures with a small budget, quantised, evaluated on 256 pictures. The weights are random, so the
accuracy means nothing; what is measured is what the stages take.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from regcache_jax.converters.engine import disassemble
from regcache_jax.converters.huggingface_clip import RULES
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from regcache_jax.encoders import catalog
from regcache_jax.encoders.parameters import parameter_shapes

NAME = "openai/clip-vit-base-patch16"


def random_checkpoint(folder: Path) -> None:
    """A folder as the hub has it: config.json, model.safetensors, tokenizer.json; all weights random."""
    spec = catalog.get(NAME).spec
    rng = np.random.default_rng(0)

    def draw(tree: dict) -> dict:
        return {
            name: draw(leaf) if isinstance(leaf, dict) else (0.02 * rng.standard_normal(leaf.shape)).astype(np.float32)
            for name, leaf in tree.items()
        }

    folder.mkdir()
    save_file(disassemble(draw(parameter_shapes(spec)), RULES), folder / "model.safetensors")
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
    target = parser.parse_args().json
    rows = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        random_checkpoint(root / "checkpoint")
        model, plan, model8 = (str(root / name) for name in ("model", "plan.safetensors", "model8"))
        data = ["--dataset", "emoji", "--batch-size", "16"]
        stages = {
            "convert": ["convert", str(root / "checkpoint"), "--out", model],
            "search, 64 pictures, 12 trials": [
                "search",
                model,
                *data,
                "--limit",
                "64",
                "--max-trials",
                "12",
                "--out",
                plan,
            ],
            "quantize, 64 pictures": ["quantize", model, *data, "--limit", "64", "--registers", plan, "--out", model8],
            "evaluate float, 256 pictures": ["evaluate", model, *data, "--limit", "256"],
            "evaluate int8, 256 pictures": ["evaluate", model8, *data, "--limit", "256"],
        }
        print("stage\tseconds\tCPU seconds\tpeak GiB")
        for stage, command in stages.items():
            seconds, work, peak = measure(command)
            rows.append({"stage": stage, "seconds": seconds, "cpu_seconds": work, "peak_gib": peak})
            print(f"{stage}\t{seconds:.1f}\t{work:.1f}\t{peak:.2f}", flush=True)
    if target is not None:
        target.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
