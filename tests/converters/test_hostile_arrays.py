"""Arrays of npz, msgpack and safetensors files that are damaged or lie."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization
from hostile import Bomb, refused
from regcache_jax.converters.readers import read_tensors

from regcache_jax.core.errors import UserError


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
