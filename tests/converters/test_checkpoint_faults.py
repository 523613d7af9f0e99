"""Damaged and hostile checkpoints, one a root cause, each by `regcache convert`: status 1, one line that names file and fault, no output.

They mirror the samples that the project was given (`faults/`); the files test_hostile_*.py look at each reader more closely."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile

import jax.numpy as jnp
import layouts
import numpy as np
import pytest
import safetensors.torch
import torch
from hostile import refused
from safetensors.numpy import load_file, save_file

OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 40, "layers": 3, "width": 48, "patch_size": 8, "head_width": 12},
        "text_cfg": {"context_length": 11, "vocab_size": 120, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
}


@pytest.fixture
def source(sound, tmp_path):
    """A CLIP folder to be spoilt."""
    return shutil.copytree(sound, tmp_path / "src")


def tensors(source, change):
    arrays = load_file(source / "model.safetensors")
    change(arrays)
    save_file(arrays, source / "model.safetensors")


def configuration(source, text):
    (source / "config.json").write_text(text)


def alone(source, name, content):
    """The weights in another file, nothing else."""
    for file in source.iterdir():
        file.unlink()
    (source / name).write_bytes(content)


def open_clip(source, configuration=OPEN_CLIP, **tensors):
    """The same CLIP in open_clip's names, with other tensors in place of some of its own."""
    weights = layouts.open_clip_from_clip(safetensors.torch.load_file(source / "model.safetensors"), 3, 2)
    alone(source, "open_clip_config.json", json.dumps(configuration).encode())
    safetensors.torch.save_file({**weights, **tensors}, source / "open_clip_model.safetensors")


def block_number_of_19_digits(source):
    open_clip(source, **{f"visual.transformer.resblocks.{'9' * 19}.ln_1.bias": torch.zeros(2)})


def config_eps_nan(source):
    tree = json.loads((source / "config.json").read_text())
    tree["vision_config"]["layer_norm_eps"] = float("nan")
    configuration(source, json.dumps(tree))


def msgpack_bytes_key(source):
    alone(source, "flax_model.msgpack", b"\x81\xc4\x01x\x93\x01\x02\x03")


def name_with_newline_and_escape(source):
    tensors(source, lambda arrays: arrays.update({"x\nregcache: all is well\x1b[31m": np.zeros(1, np.float32)}))


def open_clip_config_is_a_list(source):
    open_clip(source, {**OPEN_CLIP, "model_cfg": [1]})


def pickled(source, code):
    """A torch file whose list of tensors is this pickle."""
    for name in ("model.safetensors", "config.json"):
        (source / name).unlink()
    with zipfile.ZipFile(source / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + code + b".")
        archive.writestr("archive/data/0", bytes(16))


def entry(name, value):
    return b"X" + struct.pack("<I", len(name)) + name + value + b"s"


def pickle_billion_laughs(source):
    pickled(
        source,
        b"}q\0" + b"".join(b"}q%c" % (n + 1) + entry(b"a", b"h%c" % n) + entry(b"b", b"h%c" % n) for n in range(40)),
    )


def pickle_huge_int_key(source):
    pickled(source, b"}\x8b" + struct.pack("<I", 3000) + b"\x7f" * 3000 + b"K\1s")


def pickle_model_is_itself(source):
    pickled(source, b"}q\0" + entry(b"model", b"h\0"))


def pickle_rewrites_bfloat16_to_8_bytes(source):
    pickled(source, b"ctorch\nBFloat16Storage\n(K\x03X\x01\0\0\0<NNNJ\x08\0\0\0J\x01\0\0\0K\0tb")


def preprocessor_nan_std(source):
    (source / "preprocessor_config.json").write_text('{"image_std": [NaN, 1, 1]}')


def preprocessor_other_size_than_the_tower(source):
    (source / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}})
    )


def tensor_of_another_rank(source):
    open_clip(source, **{"visual.conv1.weight": torch.zeros(3, 8, 8)})


def as_torch(source):
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, source / "pytorch_model.bin")
    return source / "pytorch_model.bin"


def torch_bad_crc_of_data_pkl(source):
    file = as_torch(source)
    content = bytearray(file.read_bytes())
    content[content.index(b"text_projection.weight")] ^= 1
    file.write_bytes(content)


def torch_stride_zero_memory(source):
    alone(source, "open_clip_config.json", json.dumps(OPEN_CLIP).encode())
    table = {"visual.class_embedding": torch.zeros(1).expand(10**9)}
    torch.save(table, source / "open_clip_pytorch_model.bin")


def npz(source, change):
    """A big_vision file beside the folder, one of its members changed."""
    file = source.parent / "tiny.npz"
    np.savez(file, **{"img/embedding/kernel": np.zeros((8, 8, 3, 4), np.float32)})
    change(file)


def npz_unknown_compression(source):
    def change(file):
        content = bytearray(file.read_bytes())
        for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            content[content.index(mark) + place] = 99
        file.write_bytes(content)

    npz(source, change)


def npz_void_dtype(source):
    npz(source, lambda file: np.savez(file, **{"img/embedding/bias": np.zeros(4, "V4")}))


FAULTS = [
    (block_number_of_19_digits, r"open_clip_model\.safetensors.*9999"),
    (config_eps_nan, r"config\.json is not readable JSON"),
    (msgpack_bytes_key, r"flax_model\.msgpack: the name b'x' in the tree is bytes"),
    (name_with_newline_and_escape, r"model\.safetensors.*x\\nregcache: all is well\\x1b\[31m"),
    (open_clip_config_is_a_list, r"open_clip_config\.json: model_cfg should be an object, got \[1\]"),
    (pickle_billion_laughs, r"pytorch_model\.bin: its containers hold themselves, or one another"),
    (pickle_huge_int_key, r"pytorch_model\.bin: .* no name .a number of 23999 bits"),
    (pickle_model_is_itself, r"pytorch_model\.bin: its containers hold themselves"),
    (pickle_rewrites_bfloat16_to_8_bytes, r"pytorch_model\.bin: .* changes what is not its own"),
    (preprocessor_nan_std, r"preprocessor_config\.json is not readable JSON"),
    (preprocessor_other_size_than_the_tower, "makes pictures of 8 px, the tower takes 40 px"),
    (tensor_of_another_rank, r"visual\.conv1\.weight is \[3, 8, 8\], expected 4 axes"),
    (torch_bad_crc_of_data_pkl, r"pytorch_model\.bin: .*data\.pkl cannot be read .Bad CRC-32"),
    (torch_stride_zero_memory, r"open_clip_pytorch_model\.bin: visual\.class_embedding .* repeats the 1 numbers"),
    (npz_unknown_compression, r"tiny\.npz: img/embedding/kernel\.npy is encrypted or compressed otherwise"),
    (npz_void_dtype, r"tiny\.npz: img/embedding/bias\.npy: holds \|V4"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_a_spoilt_checkpoint_is_refused_in_one_line_and_leaves_nothing(source, tmp_path, spoil, message):
    spoil(source)
    file = source.parent / "tiny.npz"
    refused(file if file.exists() else source, tmp_path, message)
    assert np.arange(3, dtype=jnp.bfloat16).tobytes() == b"\0\0\x80\x3f\0\x40"  # no file reaches numpy's own types
