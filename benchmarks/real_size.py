"""The whole flow at real size: a random encoder in Hugging Face's layout, with times and peak memory by stage.

    python benchmarks/real_size.py [NAME] [--json FILE] [--work DIR]

NAME is one of LAYOUTS (CLIP ViT-B/16, if it is left out). Converted, inspected, searched with a small budget, quantised, evaluated; the
newer families on few pictures, and also exported and compiled for a TPU. The weights are random, so accuracy and error mean nothing; what
is measured is what the stages take. With --work, what was made and measured stays in DIR, and a benchmark that was stopped goes on behind
its last finished stage.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
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
from regcache_jax.converters.conversion import FORMATS
from regcache_jax.converters.engine import disassemble
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from regcache_jax.core.names import to_tree
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders import catalog
from regcache_jax.encoders.parameters import parameter_shapes

CLIP = "openai/clip-vit-base-patch16"
LAYOUTS = {
    CLIP: ("Hugging Face CLIP", "clip"),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": ("Hugging Face DINOv3", "dinov3_vit"),
    "google/siglip2-base-patch16-naflex": ("Hugging Face SigLIP 2 NaFlex", "siglip2_vision_model"),
    "google/gemma-3-4b-it": ("Hugging Face SigLIP", "gemma3"),
}
"""Encoders that can be made: the layout of their files, and the `model_type` of their config.json."""


def spec_of(name: str) -> EncoderSpec:
    """What is made: of the newer families the image tower alone."""
    spec = catalog.get(name).spec
    return spec if name == CLIP else dataclasses.replace(spec, text=None, tokenization=None)


def config_of(name: str, spec: EncoderSpec) -> dict:
    """A config.json; what it leaves out is as transformers has it."""
    image, blocks, kind = spec.image, spec.image.blocks, LAYOUTS[name][1]
    sizes = {
        "hidden_size": blocks.width, "intermediate_size": blocks.mlp_width, "num_hidden_layers": blocks.num_blocks,
        "num_attention_heads": blocks.num_heads, "patch_size": image.patch_size, "image_size": image.image_size,
    }  # fmt: skip
    if kind == "clip":
        return {"model_type": kind, "_name_or_path": name, "vision_config": sizes, "text_config": {}}
    if kind == "gemma3":
        tower = {"model_type": "siglip_vision_model", "vision_use_head": False, **sizes}
        return {"model_type": kind, "_name_or_path": name, "vision_config": tower}
    return {"model_type": kind, "_name_or_path": name, **sizes}


def random_checkpoint(name: str, folder: Path) -> None:
    """A folder as the hub has it: config.json, model.safetensors, of a CLIP tokenizer.json; all weights random."""
    spec, rng = spec_of(name), np.random.default_rng(0)
    rules = next(format.rules for format in FORMATS if format.name == LAYOUTS[name][0])

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32)

    folder.mkdir()
    arrays = disassemble(jax.tree.map(draw, to_tree(parameter_shapes(spec))), rules)
    below = "vision_tower." if LAYOUTS[name][1] == "gemma3" else ""
    save_file({f"{below}{tensor}": array for tensor, array in arrays.items()}, folder / "model.safetensors")
    if spec.tokenization is not None:
        vocabulary = {chr(code): code for code in range(32, 127)} | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
        Tokenizer(models.WordLevel(vocabulary, unk_token=" ")).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config_of(name, spec)))


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
    parser.add_argument("name", nargs="?", choices=LAYOUTS, default=CLIP)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = run_stages(arguments.name, root)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def stages_of(name: str, root: Path) -> dict[str, list[str]]:
    """The commands by what they are called."""
    model, plan, table, model8 = (str(root / name) for name in ("model", "plan.safetensors", "trials.jsonl", "model8"))
    convert = {"convert": ["convert", str(root / "checkpoint"), "--out", model]}
    if name != CLIP:
        return convert | few_pictures(name, root)
    data = ["--dataset", "emoji", "--batch-size", "16"]
    few, small = [*data, "--limit", "64"], ["--max-trials", "12", "--table", table]
    return convert | {
        "inspect, 64 pictures, the verdict": ["inspect", model, *few, "--sensitivity-images", "0"],
        "inspect, 64 pictures, and what is measured on 16": ["inspect", model, *few],
        "search, 64 pictures, 12 trials": ["search", model, *few, *small, "--out", plan],
        "quantize, 64 pictures": ["quantize", model, *few, "--registers", plan, "--out", model8],
        "evaluate float, 256 pictures": ["evaluate", model, *data, "--limit", "256"],
        "evaluate int8, 256 pictures": ["evaluate", model8, *data, "--limit", "256"],
    }


def few_pictures(name: str, root: Path) -> dict[str, list[str]]:
    """The same of a newer family: patches are what is compared."""
    model, plan, model8 = (str(root / name) for name in ("model", "plan.safetensors", "model8"))
    long = spec_of(name).image.num_tokens > 1000
    count, few, trials, batch, at_once = (1, 4, 1, 1, 1) if long else (16, 16, 4, 8, 16)
    data = ["--dataset", "emoji", "--batch-size", str(batch), "--limit"]
    own, pictures = [*data, str(count)], "one picture" if long else f"{count} pictures"
    budget = ["--max-trials", str(trials), "--objective", "patches" if long else "pooled"]
    return {
        f"inspect, {pictures}, the verdict": ["inspect", model, *own, "--sensitivity-images", "0"],
        f"search, {few} pictures, trials: {trials}": ["search", model, *data, str(few), *budget, "--out", plan],
        f"quantize, {pictures}": ["quantize", model, *own, "--registers", plan, "--out", model8],
        f"patches of float and int8, {pictures}": ["evaluate", model, model8, *own, "--task", "tower"],
        "export int8": ["export", model8, "--platforms", "cpu", "--out", str(root / "int8.stablehlo")],
        "five programs by the TPU's compiler": ["tpu", model8, "--batches", str(at_once)],
    }


def run_stages(name: str, root: Path) -> list[dict]:
    """Runs the stages that the folder has no figures of; prints and returns all rows."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "checkpoint" / "config.json").exists():
        shutil.rmtree(root / "checkpoint", ignore_errors=True)
        random_checkpoint(name, root / "checkpoint")
    stages, measured = stages_of(name, root), root / "rows.json"
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
