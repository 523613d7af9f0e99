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

import numpy as np
import pytest
import torch
from randomized import clip, save_random, siglip
from regcache_jax.converters.pickles import load_tensors
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
    message = refused(folder, tmp_path, "could run code and is not read" if kind == "zip" else "holds tensors only")
    assert str(folder / "pytorch_model.bin") in message and not mark.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "collections.Counter"])
def test_no_function_but_those_that_make_tensors_is_found(name):
    module, function = name.rsplit(".", 1)
    code = f"c{module}\n{function}\n(S'1'\ntR.".encode()
    with pytest.raises(UserError, match=f"asks for {name}"):
        load_tensors(code, "file.bin")


def test_a_pickle_that_would_fill_the_memory_is_refused():
    code = b"}" + b"r" + struct.pack("<I", 2**31 - 1) + b"."  # notes an empty dict as number two billion
    with pytest.raises(UserError, match="numbers an entry 2147483647; reading it would exhaust the memory"):
        load_tensors(code, "file.bin")


def test_objects_inside_npz_are_refused_unread(tmp_path):
    mark = tmp_path / "ran"
    np.savez(tmp_path / "siglip.npz", **{"img/embedding/kernel": np.array([Bomb(mark)], dtype=object)})
    refused(tmp_path / "siglip.npz", tmp_path, "img/embedding/kernel.npy holds pickled Python objects")
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.999])
def test_truncated_safetensors_are_refused(folder, tmp_path, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    assert str(file) in refused(folder, tmp_path, "truncated|is no safetensors file")


def header(path: Path, text: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)


@pytest.mark.parametrize(
    ("text", "length", "message"),
    [
        (b"{}", 10**12, "says its header has 1000000000000 bytes"),
        (b"[1, 2]", None, "not a JSON object"),
        (b"{" * 4, None, "header is not JSON"),
        (b"[" * 100_000, None, "header is not JSON"),
        (
            b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4000000000000]}}',
            None,
            "truncated or damaged",
        ),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', None, "truncated or damaged"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}', None, "not well formed"),
        (b'{"a": {"dtype": "PYOBJ", "shape": [1], "data_offsets": [0, 4]}}', None, "not well formed or of a type"),
        (b'{"a": 3}', None, "not well formed"),
    ],
    ids=["huge header", "list", "not json", "deep", "terabytes", "too short", "negative", "type", "entry"],
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
    refused(shards, tmp_path, "not readable JSON|should hold|is no index")


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
        ("[]", "should hold a JSON object"),
        (
            '{"model_type": "clip", "vision_config": {"hidden_size": "wide"}}',
            "hidden_size should be like 768, got 'wide'",
        ),
        ('{"model_type": "clip", "vision_config": {"hidden_size": -4}}', "hidden_size should be like 768, got -4"),
        ('{"model_type": "clip", "vision_config": 3}', "vision_config should be"),
        ('{"model_type": "clip", "vision_config": {"hidden_act": "tanh"}}', "hidden_act 'tanh' is not one of"),
        ('{"model_type": "clip", "vision_config": {"num_attention_heads": 7}}', "7 heads do not divide"),
        ('{"model_type": "clip", "vision_config": {"num_hidden_layers": 1000000000000}}', "1000000000000 blocks"),
        ('{"model_type": "clip", "vision_config": {"image_size": 20}}', "hold no patch of 32 px"),
    ],
)
def test_a_spoilt_configuration_is_named(folder, tmp_path, config, message):
    (folder / "config.json").write_text(config)
    refused(folder, tmp_path, message)


def test_another_kind_of_model_is_refused_with_the_kinds_that_are_known(folder, tmp_path):
    save_file({"bert.weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    refused(folder, tmp_path, "holds a 'bert'; encoders that can be converted: clip, ")


@pytest.mark.parametrize("kind", ["NaFlex folder", "NaFlex npz", "DINOv3 folder", "DINOv3 pth"])
def test_what_is_not_supported_yet_is_told_by_its_contents_and_refused_in_one_line(tmp_path, kind):
    family, form = kind.split()
    source = tmp_path / {"folder": "folder", "npz": "mine.npz", "pth": "mine.pth"}[form]
    if form == "folder":
        names = ["vision_model.embeddings.patch_embedding.bias", "vision_model.head.probe", "embeddings.cls_token"]
        source.mkdir()
        save_file({name: np.zeros((2, 2), np.float32) for name in names}, source / "model.safetensors")
        (source / "config.json").write_text(f'{{"model_type": "{"siglip2" if family == "NaFlex" else "dinov3_vit"}"}}')
    elif form == "npz":
        names = ("params/img/embedding/kernel", "params/img/Transformer/encoderblock/LayerNorm_0/scale")
        np.savez(source, **{name: np.zeros((2, 2), np.float32) for name in names})
    else:
        names = ("cls_token", "mask_token", "storage_tokens", "blocks.0.ls1.gamma")
        torch.save({name: torch.zeros(2) for name in names}, source)
    refused(source, tmp_path, f"is not supported yet: {family} ")


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
