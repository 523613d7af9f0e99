"""Commands that tests kill: what they are given, when they have ended, and what they have made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import small
from killing import TINY
from PIL import Image
from randomized import clip, save_random
from safetensors.numpy import load_file

from regcache_jax.models.folder import save

DATA = ("--dataset", "dummy", "--limit", "8", "--batch-size", "4")
KNN = (
    "--task", "knn", "--neighbours", "3", "--split", "train", "--limit", "20", "--bank-limit", "20", "--batch-size", "4",
    "--keep-every", "8",
)  # fmt: skip
"""Small data, and k-NN of it."""
COMMANDS = {
    "search": ("search", "{model}", *DATA, "--max-trials", "3", "--out", "{folder}/plan.safetensors", "--table", "{folder}/trials.jsonl"),
    "evaluate": ("evaluate", "{model}", "--dataset", "emoji", *KNN, "--workdir", "{folder}/kept", "--json", "{folder}/rows.json"),
    "embed": ("embed", "{model}", "--images", "{pictures}", "--out", "{folder}/features.npz"),
    "partitions": (
        "embed", "{model}", "--images", "{pictures}", "--partition", "2", "--batch-size", "2", "--out", "{folder}/set",
    ),
    "compare": (
        "compare", "{model}", *DATA, "--bits", "8", "--methods", "rtn,token", "--calibration", "8", "--no-registers",
        "--out", "{folder}/out",
    ),
    "convert": ("convert", "{source}", "--out", "{folder}/model"),
    "quantize": ("quantize", "{model}", *DATA, "--scheme", "w8a8", "--out", "{folder}/int8"),
    "run": ("run", "--config", "demo", "--workdir", "{folder}/work", "--config.model={model}", *TINY),
}  # fmt: skip

Places = dict[str, str]


def prepare(folder: Path) -> Places:
    """A model, a checkpoint and pictures."""
    (folder / "pictures").mkdir()
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(noise).save(folder / "pictures" / f"{number}.png")
    model, source = save(folder / "model", small.encoder("siglip")), save_random(clip(), folder / "source")
    return {"model": str(model), "source": str(source), "pictures": str(folder / "pictures")}


def arguments_of(command: str, folder: Path, places: Places) -> list[str]:
    """A command as it is typed, for a folder of its own."""
    return [argument.format(folder=folder, **places) for argument in COMMANDS[command]]


def has_ended(command: str, folder: Path) -> bool:
    """Whether its only file (or model folder) is there: then nobody starts it again, and it would refuse."""
    arguments = COMMANDS[command]
    if command in ("compare", "partitions") or "--out" not in arguments:
        return False
    return Path(arguments[arguments.index("--out") + 1].format(folder=folder)).exists()


TELL_THE_TIME = ("report.html",)
"""So do the metadata of plans."""
OF_ONE_RUN = ("seconds", "compilations", "sha256", "sealed_files", "models/w8a8")
"""So do seconds, what was compiled by this process already, and hashes of files that tell the time; the files themselves are compared."""


def outcome(folder):
    """All that was made, but for what tells the time: tables, plans, trials, features, models, records of stages."""
    readers = {".json": lambda file: timeless(json.loads(file.read_text())), ".safetensors": arrays}
    files = [
        file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock" and "log." not in file.name
    ]
    return {
        str(file.relative_to(folder)): readers.get(file.suffix, Path.read_bytes)(file)
        for file in files
        if file.name not in TELL_THE_TIME
    }


def arrays(file: Path) -> dict[str, list]:
    """A file of arrays without its metadata."""
    return {name: array.tolist() for name, array in load_file(file).items()}


def timeless(tree):
    """A tree of JSON without what differs from run to run."""
    if isinstance(tree, dict):
        return {name: timeless(below) for name, below in tree.items() if name not in OF_ONE_RUN}
    return [timeless(below) for below in tree] if isinstance(tree, list) else tree
