"""Checkpoint folders, their names, shapes, shards and configurations, and sources that are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hostile import refused, rewrite
from randomized import save_random, siglip
from regcache_jax.converters.engine import StoredTensor
from regcache_jax.converters.formats import Given, section
from safetensors.numpy import save_file

from regcache_jax import converters
from regcache_jax.cli.main import main
from regcache_jax.core.errors import UserError


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
    refused(shards, tmp_path, r"places 1 tensor elsewhere or not at all: .*logit_scale \(model-00009")
    tree["weight_map"]["surprise"] = index.name
    index.write_text(json.dumps(tree))
    refused(shards, tmp_path, "names files that are no .safetensors shards")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "flax_model.msgpack", "weights.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x04garbage", bytes(range(256))])
def test_a_file_that_is_not_what_its_name_says_is_refused(folder, tmp_path, name, content):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    assert name in refused(folder, tmp_path, "truncated|is not a torch file|is no Flax msgpack|holds no tensors")


@pytest.mark.slow
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
    refused(folder, tmp_path, "holds a 'bert'; encoders that can be converted: .*clip, ")


@pytest.mark.parametrize("model_type", ["siglip", "siglip2"])
def test_patches_are_a_convolution_in_siglip_and_a_matrix_in_naflex_whatever_the_configuration_says(
    tmp_path, model_type
):
    shape = (2, 12) if model_type == "siglip" else (2, 3, 2, 2)
    embedding = "vision_model.embeddings.patch_embedding"
    save_file(
        {f"{embedding}.weight": np.zeros(shape, np.float32), f"{embedding}.bias": np.zeros(2, np.float32)},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    refused(
        tmp_path,
        tmp_path,
        f"config.json says model_type '{model_type}', the tensors are those of .* one of the files is of another model",
    )


def test_a_naflex_file_that_lacks_its_positions_is_refused(tmp_path):
    names = ("params/img/embedding/kernel", "params/img/Transformer/encoderblock/LayerNorm_0/scale")
    np.savez(tmp_path / "mine.npz", **{name: np.zeros((12, 2), np.float32) for name in names})
    refused(tmp_path / "mine.npz", tmp_path, "lacks img/pos_embedding")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.safetensors", "there is no file"),
        ("notes.txt", "is not a checkpoint file: its name should end in"),
        ("empty", "has no checkpoint .* it holds nothing"),
        ("siglip.npz:txt", "a text tower alone"),
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
