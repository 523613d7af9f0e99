"""Readers of what others wrote: checkpoints, their configurations and tokenizers."""

from __future__ import annotations

import collections
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
from flax import serialization
from fuzz_targets import Make, Target, files_of
from mutations import change_member, change_tree, mutate
from randomized import clip, save_random
from regcache_jax.converters.conversion import read_checkpoint
from regcache_jax.converters.readers import read_tensors

from regcache_jax.encoders import words
from regcache_jax.encoders.preprocess import preprocess

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/c": np.ones(3, jnp.bfloat16),
    "b/d": np.zeros((), np.float16),
}


def tensors_of(name: str) -> Callable[[Path], object]:
    """Reads all of a checkpoint's tensors."""
    return lambda folder: [tensor.read() for tensor in read_tensors(folder / name).values()]


def safetensors_file(folder: Path) -> Target:
    content = safetensors.numpy.save(ARRAYS, {"format": "pt"})
    return Target({"w.safetensors": content}, ("*",), tensors_of("w.safetensors"), mutate)


def npz(folder: Path) -> Target:
    packed = io.BytesIO()
    np.savez(packed, **ARRAYS)
    return Target({"w.npz": packed.getvalue()}, ("*",), tensors_of("w.npz"), change_member)


def msgpack(folder: Path) -> Target:
    tree = {"a": ARRAYS["a"], "b": {"c": ARRAYS["b/c"], "d": ARRAYS["b/d"]}}
    content = serialization.msgpack_serialize(tree)
    return Target({"w.msgpack": content}, ("*",), tensors_of("w.msgpack"), mutate)


def saved(**how: Any) -> dict[str, bytes]:
    """A torch file with views, a parameter and things that are no tensors."""
    table, written = torch.arange(24.0).reshape(4, 6), io.BytesIO()
    state = collections.OrderedDict(
        a=table, b=table.T, c=table[1:3].to(torch.bfloat16), d=torch.nn.Parameter(table + 1)
    )
    torch.save({"state_dict": state, "epoch": 3, "history": [0.5, (1, "x")], "none": None}, written, **how)
    return {"w.pt": written.getvalue()}


def torch_zip(folder: Path) -> Target:
    return Target(saved(), ("*",), tensors_of("w.pt"), change_member)


def torch_legacy(folder: Path) -> Target:
    return Target(saved(_use_new_zipfile_serialization=False), ("*",), tensors_of("w.pt"), mutate)


def shards(folder: Path) -> Target:
    name, index = "m-00001-of-00001.safetensors", "m.safetensors.index.json"
    listed = {"metadata": {"total_size": 32}, "weight_map": dict.fromkeys(ARRAYS, name)}
    files = {index: json.dumps(listed).encode(), name: safetensors.numpy.save(ARRAYS)}
    return Target(files, (index,), tensors_of(index), change_tree)


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


def clip_folder(folder: Path, *changed: str) -> Target:
    files = files_of(save_random(clip(), folder / "source"))
    files["preprocessor_config.json"] = json.dumps(PROCESSOR).encode()
    files["tokenizer_config.json"] = b'{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": "</s>"}'
    files["vocab.json"] = b'{"<s>": 118, "</s>": 119, "a": 1}'

    def usable(folder: Path) -> None:
        encoder = read_checkpoint(str(folder)).encoder
        picture = preprocess(np.full((50, 60, 3), 7, np.uint8), encoder.spec.preprocessing)
        assert picture.shape == (40, 40, 3) and np.isfinite(picture).all()

    return Target(files, changed, usable, change_tree, share=0.5)


def configurations(folder: Path) -> Target:
    return clip_folder(folder, "config.json", "tokenizer_config.json", "vocab.json", "generation_config.json")


def processors(folder: Path) -> Target:
    return clip_folder(folder, "preprocessor_config.json")


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


def tokenizers(folder: Path) -> Target:
    """Every change costs a child process."""

    def read(folder: Path) -> object:
        file = folder / "tokenizer.json"
        return words.read_tried({str(file): file.read_bytes()}, 100)("a photo of a cat")

    return Target({"tokenizer.json": json.dumps(TOKENIZER).encode()}, ("*",), read, change_tree, share=0.2)


TARGETS: dict[str, Make] = {
    "safetensors": safetensors_file,
    "shards of safetensors": shards,
    "npz": npz,
    "msgpack": msgpack,
    "torch, zip": torch_zip,
    "torch, legacy": torch_legacy,
    "configurations": configurations,
    "processors": processors,
    "tokenizers": tokenizers,
}
