"""Damaged files for every reader: sound ones, built here, are changed at random, and whatever happens but a clear refusal is kept.

    make fuzz COUNT=20000          # or: python tests/fuzzing.py --count 5000 --target msgpack

Each change has a number (the seed of its random choices), so a finding can be made again. Findings lie in build/fuzz/."""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import io
import json
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
from flax import serialization
from regcache_jax.converters.conversion import read_checkpoint
from regcache_jax.converters.readers import read_tensors

from regcache_jax.core.errors import UserError
from regcache_jax.encoders import words

SECONDS = 30  # that a reader may take by the clock; a tokenizer's trial takes up to ten of a processor
MEMORY = 8 << 30  # bytes of address space, when this is run as a program
LARGE = (2**31 - 1, 2**32, 2**63 - 1, 2**64, 10**12, 10**30, -1, 0)
ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    [[]],
    "x",
    "",
    -1,
    0,
    0.5,
    1e308,
    10**30,
    True,
    "1",
    {"a": 1},
    [1, 2, 3],
    "\x1b[31m\n",
)


class Target(NamedTuple):
    """A reader, the files it is tried on (one of which is changed each time), and how they are changed."""

    files: dict[str, bytes]
    changed: tuple[str, ...]
    read: Callable[[Path], object]
    change: Callable[[bytes, random.Random], bytes]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three changes of bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_CHANGES)(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    near = rng.random() < 0.5  # half of them near the beginning, where headers are
    return rng.randrange(max(1, min(len(content), 400) if near else len(content)))


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\0"
    place, bit = _place(content, rng), 1 << rng.randrange(8)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _remove(content: bytes, rng: random.Random) -> bytes:
    place = _place(content, rng)
    return content[:place] + content[place + rng.choice((1, 2, 8, 64)) :]


def _splice(content: bytes, rng: random.Random) -> bytes:
    start, target, length = _place(content, rng), _place(content, rng), rng.choice((1, 4, 16, 200))
    return content[:target] + content[start : start + length] + content[target:]


def _enlarge(content: bytes, rng: random.Random) -> bytes:
    numbers = list(re.finditer(rb"\d+", content[:100_000]))
    if not numbers:
        return _overwrite(content, rng)
    found = rng.choice(numbers)
    return content[: found.start()] + str(rng.choice(LARGE)).encode() + content[found.end() :]


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    form, place = rng.choice(["<B", "<H", "<I", "<Q", ">H", ">I", ">Q"]), _place(content, rng)
    size = struct.calcsize(form)
    number = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1, 2 ** (4 * size)))
    return content[:place] + struct.pack(form, number) + content[place + size :]


def _swap(content: bytes, rng: random.Random) -> bytes:
    names = list(re.finditer(rb'"[^"]{1,80}"|[a-z_.]{4,}', content[:100_000]))
    if len(names) < 2:
        return _flip(content, rng)
    first, second = sorted(rng.sample(names, 2), key=lambda found: found.start())
    between = content[first.end() : second.start()]
    return content[: first.start()] + second[0] + between + first[0] + content[second.end() :]


_CHANGES = (_flip, _cut, _remove, _splice, _enlarge, _overwrite, _swap)


def change_member(content: bytes, rng: random.Random) -> bytes:
    """A zip archive with one member changed and its CRC right again; one time in four the archive itself is changed."""
    if rng.random() < 0.25:
        return mutate(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    listing = [name for name in members if name.endswith(".pkl")]
    name = listing[0] if listing and rng.random() < 0.7 else rng.choice(list(members))
    members[name] = mutate(members[name], rng)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for each, held in members.items():
            archive.writestr(each, held)
    return written.getvalue()


def change_tree(content: bytes, rng: random.Random) -> bytes:
    """JSON with one to three of its values replaced, renamed or removed; one time in eight its bytes are changed."""
    if rng.random() < 0.125:
        return mutate(content, rng)
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        nodes = list(_containers(tree))
        node = rng.choice(nodes)
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            continue
        key = rng.choice(keys)
        match rng.randrange(8):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(["x", "type", "", "a" * 5000])] = node.pop(key)
            case 2:
                node[key] = node[rng.choice(keys)]
            case 3 if type(node[key]) is int:
                node[key] = rng.choice(LARGE)
            case _:
                node[key] = rng.choice(ODD)
    return json.dumps(tree).encode()


def _containers(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list):
        yield node
        for child in node.values() if isinstance(node, dict) else node:
            yield from _containers(child)


def _read_all(path: Path) -> object:
    return [tensor.read() for tensor in read_tensors(path).values()]


def _saved(**how: Any) -> bytes:
    table, written = torch.arange(24.0).reshape(4, 6), io.BytesIO()
    state = collections.OrderedDict(
        a=table, b=table.T, c=table[1:3].to(torch.bfloat16), d=torch.nn.Parameter(table + 1)
    )
    torch.save({"state_dict": state, "epoch": 3, "history": [0.5, (1, "x")], "none": None}, written, **how)
    return written.getvalue()


def targets() -> dict[str, Target]:
    """One a kind of file that needs no encoder."""
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b/c": np.ones(3, jnp.bfloat16),
        "b/d": np.zeros((), np.float16),
    }
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    tensors = safetensors.numpy.save(arrays, {"format": "pt"})
    tree = {"a": arrays["a"], "b": {"c": arrays["b/c"], "d": arrays["b/d"]}}
    index = json.dumps(
        {"metadata": {"total_size": 32}, "weight_map": dict.fromkeys(arrays, "m-00001-of-00001.safetensors")}
    )
    sharded = {"m.safetensors.index.json": index.encode(), "m-00001-of-00001.safetensors": tensors}
    one = {
        "safetensors": ("w.safetensors", tensors, mutate),
        "npz": ("w.npz", packed.getvalue(), change_member),
        "msgpack": ("w.msgpack", serialization.msgpack_serialize(tree), mutate),
        "torch": ("w.pt", _saved(), change_member),
        "legacy torch": ("w.pt", _saved(_use_new_zipfile_serialization=False), mutate),
    }
    found = {kind: Target({name: content}, (name,), _read_all, change) for kind, (name, content, change) in one.items()}
    found["sharded"] = Target(sharded, ("m.safetensors.index.json",), _read_all, change_tree)
    return found


PROCESSOR = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 40, "width": 40},
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "resample": 3,
}
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {
            "id": 9,
            "content": "<s>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]+|[0-9]"}, "behavior": "Removed", "invert": True},
    "post_processor": None,
    "decoder": None,
    "truncation": None,
    "padding": None,
    "model": {
        "type": "BPE",
        "unk_token": "<s>",
        "end_of_word_suffix": "</w>",
        "byte_fallback": False,
        "vocab": {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab": 4, "ab</w>": 5, "<s>": 9},
        "merges": [["a", "b"], ["a", "b</w>"]],
    },
}


def configuration_target(folder: Path) -> Target:
    """The JSON files of a sound Hugging Face folder."""
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".json", ".safetensors")}
    files["preprocessor_config.json"] = json.dumps(PROCESSOR).encode()
    files["tokenizer_config.json"] = b'{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": "</s>"}'
    files["vocab.json"] = b'{"<s>": 118, "</s>": 119, "a": 1}'
    changed = tuple(sorted(name for name in files if name.endswith(".json") and not name.startswith("model.")))
    return Target(files, changed, lambda path: read_checkpoint(str(path.parent)), change_tree)


def tokenizer_target() -> Target:
    """A sound tokenizer.json; every change costs a child process."""

    def read(path: Path) -> object:
        return words.read_tried({str(path): path.read_bytes()}, 100)("a photo of a cat")

    return Target({"tokenizer.json": json.dumps(TOKENIZER).encode()}, ("tokenizer.json",), read, change_tree)


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(target: Target, seed: int, keep: Path | None = None) -> str:
    """Changes one file and reads. Gives `taken`, `refused`, or what else happened; of that the input stays in `keep`."""
    rng = random.Random(seed)
    name = rng.choice(target.changed)
    content = target.change(target.files[name], rng)
    with tempfile.TemporaryDirectory() as folder:
        for each, held in target.files.items():
            (Path(folder) / each).write_bytes(content if each == name else held)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"current-{name}").write_bytes(content)  # there also if this process dies
        try:
            with _in_time():
                target.read(Path(folder) / name)
            return "taken"
        except UserError as error:
            if len(str(error).splitlines()) == 1 and str(error).isprintable():
                return "refused"
            outcome = "refused in several lines"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {str(error)[:200]}"
    if keep is not None:
        (keep / f"{seed}-{name}").write_bytes(content)
    return outcome


def run(
    kinds: Mapping[str, Target], count: int, first: int = 0, keep: Path | None = None
) -> dict[str, collections.Counter[str]]:
    """`count` changes for each target; how often what happened."""
    return {
        kind: collections.Counter(attempt(target, seed, keep and keep / kind) for seed in range(first, first + count))
        for kind, target in kinds.items()
    }


def main() -> None:
    """The program behind `make fuzz`."""
    from randomized import clip, save_random

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--count", type=int, default=1000, help="changes for each kind of file; a tenth of them for tokenizers"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first change")
    parser.add_argument("--target", help="only this kind of file")
    options = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    keep = Path("build/fuzz")
    with tempfile.TemporaryDirectory() as folder:
        source = save_random(clip(), Path(folder) / "source")
        kinds = {**targets(), "configurations": configuration_target(source)}
        counts = dict.fromkeys(kinds, options.count) | {"tokenizers": max(1, options.count // 10)}
        kinds["tokenizers"] = tokenizer_target()
        faults = 0
        print("| file | changes | taken | refused | anything else |\n|---|---|---|---|---|")
        for kind, target in kinds.items():
            if options.target in (None, kind):
                told = run({kind: target}, counts[kind], options.first, keep)[kind]
                others = {what: number for what, number in told.items() if what not in ("taken", "refused")}
                faults += sum(others.values())
                print(f"| {kind} | {counts[kind]} | {told['taken']} | {told['refused']} | {others or 0} |", flush=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
