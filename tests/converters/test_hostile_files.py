from __future__ import annotations

import collections
import contextlib
import io
import json
import pickle
import re
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import torch
from flax import serialization
from killing import in_a_fresh_process
from randomized import clip, save_random, siglip
from regcache_jax.converters import described as descriptions
from regcache_jax.converters import pickles
from regcache_jax.converters.described import named_tensors
from regcache_jax.converters.engine import StoredTensor
from regcache_jax.converters.formats import Given, section
from regcache_jax.converters.pickles import describe
from regcache_jax.converters.readers import read_tensors
from safetensors.numpy import load_file, save_file

from regcache_jax import converters
from regcache_jax.cli.main import main
from regcache_jax.core.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A sound CLIP folder, to be spoilt."""
    return save_random(clip(), tmp_path / "source")


def refused(source, tmp_path, match: str) -> str:
    """Runs `regcache convert`; asserts exit status 1, one message in one line, and no output left. Returns the message."""
    before = set(tmp_path.iterdir())
    printed = io.StringIO()
    with pytest.raises(SystemExit) as stopped, contextlib.redirect_stderr(printed):
        main(["convert", str(source), "--out", str(tmp_path / "model")])
    assert stopped.value.code == 1
    assert set(tmp_path.iterdir()) == before
    started, message = printed.getvalue().splitlines()
    assert started.startswith("converting ") and message.startswith("regcache: ")
    assert re.search(match, message), message
    return message


def rewrite(folder: Path, change) -> None:
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


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


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            npy("{'descr': '|V4', 'fortran_order': False, 'shape': (2,)}", b"12345678"),
            r"holds \|V4; expected plain numbers",
        ),
        (
            npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", b"12345678"),
            "expected plain numbers",
        ),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"12345678"), "holds pickled Python objects"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -2)}", b"12345678"), "says it is"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**12,)}", b"1234"), "no NumPy array"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", b"1234"), "holds only 4 bytes"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", b"12345"), "holds only 5 bytes"),
        (npy("-" * 9000), "no NumPy array"),
        (b"\x93NUMPY\x09\0", "no NumPy array"),
    ],
)
def test_an_array_of_an_npz_that_holds_no_plain_numbers_is_refused(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", content)
    with pytest.raises(UserError, match=rf"w\.npy:? .*{message}"):
        read_tensors(tmp_path / "w.npz")


@pytest.mark.parametrize(("field", "number"), [("compression", 99), ("encrypted", 1)])
def test_a_member_that_cannot_be_unpacked_is_named(tmp_path, field, number):
    np.savez(tmp_path / "w.npz", w=np.ones(3))
    content = bytearray((tmp_path / "w.npz").read_bytes())
    place = content.index(b"PK\1\2") + {"compression": 10, "encrypted": 8}[field]
    content[place] = number
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.npy is encrypted or compressed otherwise than by deflate"):
        read_tensors(tmp_path / "w.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        for _ in range(2):
            archive.writestr("w.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", b"1234"))
    with pytest.raises(UserError, match="2 members have only 1 names"):
        read_tensors(tmp_path / "w.npz")


def array(shape, name, content) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, name, content)))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({b"x": {b"y": 1}}, "not allowed|is bytes, expected text"),
        ({"x": 1}, "x is int; expected arrays"),
        ({"x": array((2,), "float32", b"1234")}, "holds 4 bytes"),
        ({"x": array((-1,), "float32", b"1234")}, "no array with a shape"),
        ({"x": array((1,), "object", b"12345678")}, "no plain numbers"),
        ({"x": array((1,), "V8", b"12345678")}, "no plain numbers"),
        ({"x": array((1,), "(9999999,)f4", b"12345678")}, "no plain numbers"),
        ({"x": array((1,), "nonsense", b"12345678")}, "is no Flax msgpack file"),
        ({"x": msgpack.ExtType(7, b"")}, "an extension of type 7"),
        ([1, 2], "it holds list"),
        ({}, "holds no arrays"),
        ({"x": [0] * 65}, "65 exceeds max_array_len"),
    ],
)
def test_a_msgpack_that_is_no_tree_of_arrays_is_refused(tmp_path, tree, message):
    (tmp_path / "w.msgpack").write_bytes(msgpack.packb(tree))
    with pytest.raises(UserError, match=f"w.msgpack.*({message})"):
        read_tensors(tmp_path / "w.msgpack")


@pytest.mark.parametrize("content", [b"\x81\xa1x" * 2000 + b"\xc0", b"\xdc\xff\xff" * 100, b"\xdd\xff\xff\xff\xff"])
def test_a_msgpack_nested_without_end_or_longer_than_itself_is_refused(tmp_path, content):
    (tmp_path / "w.msgpack").write_bytes(content)
    with pytest.raises(UserError, match="is no Flax msgpack file"):
        read_tensors(tmp_path / "w.msgpack")


def test_flax_trees_are_read_as_flax_reads_them(tmp_path):
    tree = {
        "a": {"b": np.arange(6.0, dtype=np.float32).reshape(2, 3)},
        "c": np.ones(3, jnp.bfloat16),
        "d": np.float32(2),
    }
    tree["d"] = np.asarray(tree["d"])
    (tmp_path / "w.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    read = read_tensors(tmp_path / "w.msgpack")
    assert set(read) == {"a/b", "c", "d"}
    np.testing.assert_array_equal(read["a/b"].read(), tree["a"]["b"])
    assert read["c"].dtype == jnp.bfloat16 and read["d"].shape == ()


def test_objects_inside_npz_are_refused_unread(tmp_path):
    mark = tmp_path / "ran"
    np.savez(tmp_path / "siglip.npz", **{"img/embedding/kernel": np.array([Bomb(mark)], dtype=object)})
    refused(tmp_path / "siglip.npz", tmp_path, "img/embedding/kernel.npy: holds pickled Python objects")
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.999])
def test_truncated_safetensors_are_refused(folder, tmp_path, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    assert str(file) in refused(folder, tmp_path, "truncated|is no safetensors file")


def header(path: Path, text: bytes, length: int | None = None) -> None:
    end = text.rfind(b"}") + 1 or len(text)  # what stands behind are the tensors' bytes
    path.write_bytes(struct.pack("<Q", end if length is None else length) + text)


@pytest.mark.parametrize(
    ("text", "length", "message"),
    [
        (b"{}", 10**12, "says its header has 1000000000000 bytes"),
        (b"[1, 2]", None, "its header: input should be an object"),
        (b"{" * 4, None, "its header is not readable JSON"),
        (b"[" * 100_000, None, "its header is not readable JSON"),
        (b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {}}', None, "the name 'a' stands twice"),
        (
            b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}1234',
            None,
            "b begins inside the tensor before it",
        ),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [3, 4]}}1234', None, "a leaves a hole before it"),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}1234', None, "its tensors end at byte"),
        (
            b'{"' + b"x" * 2000 + b'": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}1234',
            None,
            "2,000 characters",
        ),
        (
            b'{"a": {"dtype": "U8", "shape": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1], "data_offsets": [0, 1]}}1',
            None,
            "17 axes",
        ),
        (
            b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4000000000000]}}',
            None,
            "is not well formed",
        ),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', None, "truncated or damaged"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}', None, "not well formed"),
        (b'{"a": {"dtype": "PYOBJ", "shape": [1], "data_offsets": [0, 4]}}', None, "not well formed or of a type"),
        (b'{"a": 3}', None, "a: input should be an object, got 3"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(folder, tmp_path, text, length, message):
    header(folder / "model.safetensors", text, length)
    refused(folder, tmp_path, message)


def test_values_that_are_not_finite_are_named(folder, tmp_path):
    def spoil(arrays):
        arrays["vision_model.post_layernorm.weight"][3] = np.nan
        arrays["text_projection.weight"][0, 0] = np.inf

    rewrite(folder, spoil)
    message = refused(folder, tmp_path, "not finite")
    assert "vision_model.post_layernorm.weight" in message and "text_projection.weight" in message


def test_a_number_that_float32_cannot_hold_is_named(folder, tmp_path):
    def spoil(arrays):
        name = "vision_model.post_layernorm.weight"
        arrays[name] = arrays[name].astype(np.float64)
        arrays[name][3] = 1e300

    rewrite(folder, spoil)
    assert "vision_model.post_layernorm.weight" in refused(folder, tmp_path, "beyond float32")


@pytest.mark.parametrize("number", ["1" * 19, "1" * 900, "\u0661"])
def test_a_block_number_that_is_none_is_a_name_that_is_not_known(folder, tmp_path, number):
    def spoil(arrays):
        arrays[f"vision_model.encoder.layers.{number}.layer_norm1.bias"] = np.zeros(2, np.float32)

    rewrite(folder, spoil)
    refused(folder, tmp_path, "not known: 1 ")


def test_all_faults_of_names_and_shapes_stand_in_one_message(folder, tmp_path):
    def spoil(arrays):
        del arrays["vision_model.pre_layrnorm.bias"]
        arrays["vision_model.surprise"] = np.zeros(2, np.float32)
        arrays["text_projection.weight"] = np.zeros((3, 3), np.float32)
        arrays["vision_model.post_layernorm.bias"] = np.zeros(48, np.int32)

    rewrite(folder, spoil)
    message = refused(folder, tmp_path, "does not fit")
    for part in (
        "missing: 1 (vision_model.pre_layrnorm.bias)",
        "not known: 1 (vision_model.surprise)",
        "text_projection.weight is [3, 3], expected [24, 32]",
        "vision_model.post_layernorm.bias holds int32, expected floating point",
    ):
        assert part in message


@pytest.fixture
def shards(tmp_path):
    return save_random(siglip(), tmp_path / "source", max_shard_size="40KB")


def test_a_missing_shard_is_named(shards, tmp_path):
    shard = sorted(shards.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refused(shards, tmp_path, "lacks 1 of")


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/etc/passwd", "sub/shard.safetensors"])
def test_an_index_that_points_outside_its_folder_is_refused(shards, tmp_path, outside):
    index = shards / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    tree["weight_map"][next(iter(tree["weight_map"]))] = outside
    index.write_text(json.dumps(tree))
    refused(shards, tmp_path, "names files outside its folder")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_refused(shards, tmp_path, text):
    (shards / "model.safetensors.index.json").write_text(text)
    refused(
        shards,
        tmp_path,
        "not readable JSON|index.json: input should|weight_map: input should|weight_map.a: input should",
    )


def test_a_shard_that_is_left_over_twice_there_or_the_index_itself_is_refused(shards, tmp_path):
    index = shards / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    extra = shards / "model-00009-of-00009.safetensors"
    save_file({"surprise": np.zeros(1, np.float32)}, extra)
    refused(shards, tmp_path, "has shards that model.safetensors.index.json does not name: .*00009-of-00009")
    tree["weight_map"]["surprise"] = extra.name
    save_file({name: np.zeros(1, np.float32) for name in ("surprise", "logit_scale")}, extra)
    index.write_text(json.dumps(tree))
    refused(shards, tmp_path, r"places 1 tensors elsewhere or not at all: .*logit_scale \(model-00009")
    tree["weight_map"]["surprise"] = index.name
    index.write_text(json.dumps(tree))
    refused(shards, tmp_path, "names files that are no .safetensors shards")


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


@pytest.mark.parametrize("name", ["pytorch_model.bin", "flax_model.msgpack", "weights.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x04garbage", bytes(range(256))])
def test_a_file_that_is_not_what_its_name_says_is_refused(folder, tmp_path, name, content):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    assert name in refused(folder, tmp_path, "truncated|is not a torch file|is no Flax msgpack|holds no tensors")


def test_a_pickle_of_something_else_is_no_checkpoint(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    buffer = io.BytesIO()
    pickle.dump(collections.OrderedDict(a=1, b="x"), buffer)
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
    refused(folder, tmp_path, "holds no tensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not readable JSON"),
        ("[]", "config.json: input should be an object"),
        ('{"model_type": "clip", "vision_config": {"layer_norm_eps": NaN}}', "config.json is not readable JSON"),
        (
            '{"model_type": "clip", "vision_config": {"hidden_size": "wide"}}',
            "hidden_size should be like 768, got 'wide'",
        ),
        ('{"model_type": "clip", "vision_config": {"hidden_size": -4}}', "hidden_size should be like 768, got -4"),
        ('{"model_type": "clip", "vision_config": 3}', "vision_config should be"),
        ('{"model_type": "clip", "vision_config": {"hidden_act": "tanh"}}', "hidden_act 'tanh' is not one of"),
        (
            '{"model_type": "clip", "vision_config": {"num_attention_heads": 7}}',
            "describes no encoder: width must be a multiple",
        ),
        (
            '{"model_type": "clip", "vision_config": {"num_hidden_layers": 1000000000000}}',
            "describes no encoder: num_blocks must be 0..1024",
        ),
        (
            '{"model_type": "clip", "vision_config": {"image_size": 20}}',
            "describes no encoder: patch_size must be 1..20, got 32",
        ),
    ],
)
def test_a_spoilt_configuration_is_named(folder, tmp_path, config, message):
    (folder / "config.json").write_text(config)
    refused(folder, tmp_path, message)


@pytest.mark.parametrize("shape", [(8, 3, 8), (8, 3, 8, 8, 1), (8, 0, 8, 8), ()])
def test_a_tensor_of_another_rank_or_without_numbers_is_named_before_sizes_are_taken_from_it(shape):
    stored = StoredTensor(shape, np.dtype(np.float32), "w.safetensors", lambda: np.zeros(shape))
    with pytest.raises(UserError, match=r"mine: visual\.conv1\.weight is \[.*\], expected 4 axes, none of them empty"):
        Given("mine", {"visual.conv1.weight": stored}).shape("visual.conv1.weight", 4)


@pytest.mark.parametrize("part", [[1], 3, "x", True])
def test_a_part_of_a_configuration_that_is_no_object_is_named(part):
    with pytest.raises(UserError, match=r"open_clip_config\.json: model_cfg should be an object, got "):
        section({"model_cfg": part}, "model_cfg", "open_clip_config.json")
    assert section({"model_cfg": None}, "model_cfg", "open_clip_config.json") == section({}, "model_cfg", "x") == {}


def test_another_kind_of_model_is_refused_with_the_kinds_that_are_known(folder, tmp_path):
    save_file({"bert.weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    refused(folder, tmp_path, "holds a 'bert'; encoders that can be converted: clip, ")


@pytest.mark.parametrize("form", ["folder", "npz"])
def test_what_is_not_supported_yet_is_told_by_its_contents_and_refused_in_one_line(tmp_path, form):
    source = tmp_path / {"folder": "folder", "npz": "mine.npz"}[form]
    if form == "folder":
        names = ["vision_model.embeddings.patch_embedding.bias", "vision_model.head.probe", "embeddings.cls_token"]
        source.mkdir()
        save_file({name: np.zeros((2, 2), np.float32) for name in names}, source / "model.safetensors")
        (source / "config.json").write_text('{"model_type": "siglip2"}')
    else:
        names = ("params/img/embedding/kernel", "params/img/Transformer/encoderblock/LayerNorm_0/scale")
        np.savez(source, **{name: np.zeros((2, 2), np.float32) for name in names})
    refused(source, tmp_path, "is not supported yet: NaFlex ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.safetensors", "there is no file"),
        ("notes.txt", "is not a checkpoint file: its name should end in"),
        ("empty", "has no checkpoint .* it holds nothing"),
        ("siglip.npz:txt", "a text tower alone"),
        ("google/siglip2-base-patch16-naflex", "is not supported yet"),
        ("open_clip:ViT-B-16,nonsense", "did you mean"),
        ("no such thing", "no encoder is called 'no such thing'"),
    ],
)
def test_a_source_that_is_none_is_refused(tmp_path, source, message):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    is_path = source in ("absent.safetensors", "notes.txt", "empty")
    refused(tmp_path / source if is_path else source, tmp_path, message)


def test_an_existing_output_folder_is_refused_and_kept(folder, tmp_path):
    (tmp_path / "model").mkdir()
    refused(folder, tmp_path, "exists already")


def test_a_tokenizer_that_is_not_there_is_refused_before_anything_is_read(folder, tmp_path):
    with pytest.raises(UserError, match="--tokenizer should be a file or a folder"):
        converters.convert(folder, tmp_path / "model", tokenizer=tmp_path / "absent")
    (tmp_path / "words.json").write_text("{}")
    for wrong in (tmp_path / "words.json", tmp_path):
        with pytest.raises(
            UserError, match=r"--tokenizer should be tokenizer\.json or vocab\.json with merges\.txt or "
        ):
            converters.convert(folder, tmp_path / "model", tokenizer=wrong)
    assert not (tmp_path / "model").exists()


def test_a_check_that_cannot_be_made_is_refused_before_anything_is_written(tmp_path, capsys):
    save_file({"cls_token": np.zeros((1, 1, 4), np.float32)}, tmp_path / "dinov2.safetensors")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "dinov2.safetensors"), "--check", "--out", str(tmp_path / "model")])
    assert "reads Hugging Face folders" in capsys.readouterr().err and not (tmp_path / "model").exists()
