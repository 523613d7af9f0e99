from __future__ import annotations

import dataclasses
import json

import layouts
import pytest
import torch
from flax import serialization
from pairs import IMAGE, WIDE, assert_same_tree, read
from randomized import CLIP_TEXT, SMALL_IMAGE, clip
from safetensors.torch import save_file


def test_a_flax_msgpack_gives_the_same_clip(tmp_path, clip_pair, tmp_path_factory):
    encoder, state, _ = clip_pair
    network = clip({**CLIP_TEXT, **WIDE}, IMAGE)
    network.config.save_pretrained(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(layouts.flax_from_clip(state)))
    ours = read(tmp_path)
    assert_same_tree(ours.params, encoder.params)
    assert dataclasses.replace(ours.spec, name="same") == dataclasses.replace(encoder.spec, name="same")


def as_vision_tower(folder, state, prefix):
    """A folder with the image tower alone, its names beginning as one version of transformers writes them."""
    folder.mkdir()
    tower = {name: tensor for name, tensor in state.items() if name.startswith("vision_model.")}
    tower = {prefix + name.removeprefix("vision_model."): tensor.contiguous() for name, tensor in tower.items()}
    save_file(tower, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_vision_tower_is_read_by_the_names_of_transformers_4_and_of_5(tmp_path, clip_pair, siglip_pair, family):
    encoder, state = (clip_pair if family == "clip" else siglip_pair)[:2]
    config = {**IMAGE, "hidden_act": "quick_gelu"} if family == "clip" else SMALL_IMAGE
    for version, prefix in (("4", "vision_model."), ("5", "")):
        folder = as_vision_tower(tmp_path / version, state, prefix)
        (folder / "config.json").write_text(json.dumps({**config, "model_type": f"{family}_vision_model"}))
        ours = read(folder)
        assert_same_tree(ours.params.image, encoder.params.image.replace(projection=None))
        assert ours.spec.image == dataclasses.replace(encoder.spec.image, projection=None)


def test_bin_shards_and_their_index_give_the_same_clip(tmp_path, clip_pair):
    encoder, state, _ = clip_pair
    clip({**CLIP_TEXT, **WIDE}, IMAGE).config.save_pretrained(tmp_path)
    names = sorted(state)
    shards = {f"pytorch_model-0000{part + 1}-of-00002.bin": names[part::2] for part in (0, 1)}
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_tree(read(tmp_path).params, encoder.params)
