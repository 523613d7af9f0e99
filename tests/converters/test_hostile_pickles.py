"""Pickles and torch files that are damaged or mean harm: nothing in them is run, each fault is named."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hostile import Bomb, refused
from killing import in_a_fresh_process
from randomized import clip
from regcache_jax.converters import described as descriptions
from regcache_jax.converters import pickles
from regcache_jax.converters.described import named_tensors
from regcache_jax.converters.pickles import describe
from regcache_jax.converters.readers import read_tensors

from regcache_jax.core.errors import UserError


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(folder, tmp_path, kind):
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "ran"
    state = {"vision_model.post_layernorm.weight": torch.ones(3), "bomb": Bomb(mark)}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "zip")
    message = refused(folder, tmp_path, "could run code and is not read")
    assert str(folder / "pytorch_model.bin") in message and not mark.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "collections.Counter"])
def test_no_function_but_those_that_make_tensors_is_found(name):
    module, function = name.rsplit(".", 1)
    code = f"c{module}\n{function}\n(S'1'\ntR.".encode()
    with pytest.raises(UserError, match=f"asks for {name}"):
        described(code)


def described(code: bytes) -> dict:
    return named_tensors(describe(io.BytesIO(code)).root)


STORAGE = (
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"  # four numbers, under the key 0
)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0K\x04\x85K\x01\x85\x89NtR"


def named(name: bytes, value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(name)) + name + value + b"s"


def test_a_pickle_of_a_tensor_in_a_dict_is_described():
    (view,) = described(b"}" + named(b"w", TENSOR) + b".").values()
    assert (view.shape, view.stride, view.storage.key, view.storage.numel) == ((4,), (1,), "0", 4)


LAUGHS = b"}q\0" + b"".join(b"}q%c" % (n + 1) + named(b"a", b"h%c" % n) + named(b"b", b"h%c" % n) for n in range(40))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"ctorch\nBFloat16Storage\n(K\x03X\x01\0\0\0<NNNJ\x08\0\0\0J\x01\0\0\0K\0tb.", "changes what is not its own"),
        (b"ctorch\nSize\nX\x01\0\0\0aK\1s.", "sets an entry of what is no dict .torch.Size"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(K\1K\2e.", "adds to what is no list"),
        (b"}" + named(b"w", TENSOR) + b"}b.", None),
        (LAUGHS + b".", "one another more than 20,000 times"),
        (b"}q\0" + named(b"model", b"h\0") + b".", "its containers hold themselves"),
        (
            b"}\x8b" + struct.pack("<I", 3000) + b"\x7f" * 3000 + b"K\1s.",
            "a key that is no name .a number of 23999 bits",
        ),
        (b"}" + b"(" * 9 + b"t" * 9 + b"K\1s.", "a key that is no name .tuple"),
        (b"}" + named(b"x" * 2000, b"}" + named(b"y", b"}" + named(b"w", TENSOR))) + b".", "has 2,000 characters"),
        (b"}" + named(b"1", TENSOR) + b"K\1" + TENSOR + b"s.", "two of its tensors are called 1"),
        (b"}r" + struct.pack("<I", 2**31 - 1) + b".", "holds no tensors"),
        (b"N" * 20_001 + b".", "takes more than 20,000 steps"),
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0J\xff\xff\xff\xff\x85K\1\x85\x89NtR.",
            "not made of whole numbers",
        ),
        (b"0.", "takes what was not put there"),
        (b"h\x05.", "recalls note 5"),
        (b"}}R.", "calls what is no function"),
        (b"\x85.", "takes what was not put there"),
        (b"\x82\1.", "has the step EXT1"),
    ],
)
def test_a_pickle_reaches_nothing_outside_itself_and_ends(code, message, monkeypatch):
    """Its bounds are lower here than they are, as shapes are checked at every step of a test."""
    monkeypatch.setattr(pickles, "_MOST_STEPS", 20_000)
    monkeypatch.setattr(descriptions, "_MOST_ENTRIES", 20_000)
    before = np.arange(3, dtype=jnp.bfloat16).tobytes()
    if message is None:
        assert list(described(code)) == ["w"]
    else:
        with pytest.raises(UserError, match=message):
            described(code)
    assert np.arange(3, dtype=jnp.bfloat16).tobytes() == before and jnp.dtype(jnp.bfloat16).itemsize == 2


LONGEST_WORK = """
import contextlib, io, struct, time
from regcache_jax.converters.described import named_tensors
from regcache_jax.converters.pickles import describe
from regcache_jax.core.errors import UserError

name = b"X" + struct.pack("<I", 1 << 24) + b"k" * (1 << 24) + b"q\\1"
for code in (
    b"ctorch\\nSize\\n" * 1_000_000,
    b"}" + name + b"0" + b"".join(b"J%b}h\\1K\\1ss" % struct.pack("<I", number) for number in range(150_000)),
):
    began = time.process_time()
    with contextlib.suppress(UserError):
        named_tensors(describe(io.BytesIO(code + b".")).root)
    print(time.process_time() - began)
"""


@pytest.mark.slow
def test_a_pickle_that_asks_for_the_most_work_is_refused_or_read_within_ten_seconds():
    """In a process of its own, without the checks of annotations that tests run under."""
    seconds = in_a_fresh_process(LONGEST_WORK).split()
    assert len(seconds) == 2 and max(map(float, seconds)) < 10


@pytest.mark.parametrize("new", [True, False])
def test_zip_and_legacy_torch_files_are_read_without_torch_as_torch_reads_them(tmp_path, new):
    table = torch.arange(24.0).reshape(4, 6)
    state = {
        "plain": table,
        "turned": table.T,
        "part": table[1:3, ::2],
        "tied": table,
        "half": table.to(torch.bfloat16),
        "parameter": torch.nn.Parameter(table + 1),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "whole": torch.arange(5),
    }
    torch.save(
        {"state_dict": collections.OrderedDict(state), "epoch": 3},
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=new,
    )
    read = read_tensors(tmp_path / "w.pt")
    assert set(read) == {f"state_dict.{name}" for name in state}
    for name, tensor in state.items():
        found = read[f"state_dict.{name}"].read()
        np.testing.assert_array_equal(found.astype(np.float32), tensor.detach().float().numpy())
        assert found.shape == read[f"state_dict.{name}"].shape == tuple(tensor.shape)


def spoil_legacy(content: bytes) -> list[bytes]:
    return [content[:-1], content + b"\0", content[:20], content[:-100], content.replace(b"storage", b"storagf")]


@pytest.mark.parametrize("number", range(5))
def test_a_legacy_file_that_is_cut_or_longer_than_it_says_is_refused(tmp_path, number):
    file = tmp_path / "w.pt"
    torch.save({"w": torch.ones(64)}, file, _use_new_zipfile_serialization=False)
    file.write_bytes(spoil_legacy(file.read_bytes())[number])
    with pytest.raises(UserError, match=f"{file}.*(truncated|not a torch file|refers to something)"):
        read_tensors(file)


@pytest.mark.parametrize("new", [True, False])
def test_a_tensor_that_repeats_one_number_takes_no_more_memory_than_its_storage(tmp_path, new):
    torch.save({"w": torch.ones(1).expand(10**12)}, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match="repeats the 1 numbers of its storage"):
        read_tensors(tmp_path / "w.pt")
    many = torch.ones(1000)
    torch.save({f"w{n}": many[:999] for n in range(9)}, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match="9 tensors take 35964 bytes, all of them out of the same 4000"):
        read_tensors(tmp_path / "w.pt")


def rezipped(file: Path, change) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    change(members)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_a_flipped_bit_in_any_member_that_is_used_is_found_by_its_crc(tmp_path, member):
    file = tmp_path / "w.pt"
    torch.save({"w": torch.arange(64.0)}, file)
    with zipfile.ZipFile(file) as archive:
        (info,) = [info for info in archive.infolist() if info.filename.endswith(member)]
        content = archive.read(info)
    whole = bytearray(file.read_bytes())
    whole[whole.index(content) + len(content) - 1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(UserError, match=f"{member} cannot be read .Bad CRC-32"):
        read_tensors(file)["w"].read()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip.npz", "weights.pt"])
def test_a_zip_bomb_is_refused_by_its_directory(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
        archive.writestr("img/embedding/kernel.npy", b"\0" * 50_000_000)
    refused(tmp_path / name, tmp_path, "no checkpoint compresses like that")


def test_a_tensor_that_claims_more_than_its_storage_is_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(clip().state_dict(), file)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    largest = max((name for name in members if "/data/" in name), key=lambda name: len(members[name]))
    members[largest] = members[largest][:8]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(folder, tmp_path, "its storage has 8 bytes")


def test_a_pickle_of_something_else_is_no_checkpoint(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    buffer = io.BytesIO()
    pickle.dump(collections.OrderedDict(a=1, b="x"), buffer)
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
    refused(folder, tmp_path, "holds no tensors")
