"""Vision towers inside vision-language models: what their language model takes, out of the tower's tensors alone."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from randomized import SMALL_IMAGE, draw_parameters, save_random

import regcache_jax as rc
from regcache_jax import converters
from regcache_jax.models import folder as checkpoints

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 100, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
IMAGES = np.random.default_rng(0).standard_normal((2, 40, 40, 3)).astype(np.float32)


def vlm(kind: str, **options) -> torch.nn.Module:
    """A small one, its language model as small as transformers lets it be."""
    title, tower, text = {
        "gemma3": ("Gemma3", "siglip_vision_model", "gemma3_text"),
        "paligemma": ("PaliGemma", "siglip_vision_model", "gemma"),
        "llava": ("Llava", "clip_vision_model", "llama"),
        "llava_next": ("LlavaNext", "clip_vision_model", "llama"),
        "idefics3": ("Idefics3", None, "llama"),
        "smolvlm": ("SmolVLM", None, "llama"),
        "internvl": ("InternVL", "internvl_vision", "qwen2"),
    }[kind]
    vision = {**SMALL_IMAGE, **({"vision_use_head": False} if tower == "siglip_vision_model" else {})}
    if tower:
        vision["model_type"] = tower
    if kind == "internvl":  # the tower of the 6B
        vision |= {"image_size": [40, 40], "patch_size": [8, 8], "norm_type": "rms_norm", "use_qk_norm": True}
        options = {"downsample_ratio": 1.0, **options}
    if kind == "gemma3":
        options = {"mm_tokens_per_image": 1, **options}
    if kind in ("idefics3", "smolvlm"):
        options = {"scale_factor": 1, **options}
    config = getattr(transformers, f"{title}Config")(
        vision_config=vision, text_config={"model_type": text, **TEXT}, **{"image_token_id": 99, **options}
    )
    return getattr(transformers, f"{title}ForConditionalGeneration")(config)


KINDS = ("gemma3", "paligemma", "llava", "llava_next", "idefics3", "smolvlm", "internvl")


def taken(network: torch.nn.Module, kind: str) -> np.ndarray:
    """What goes into the projector, caught at its door as the whole model runs."""
    caught = []
    inner = network.model
    door = inner.connector if kind in ("idefics3", "smolvlm") else inner.multi_modal_projector
    handle = door.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    pixels = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    sizes = {"image_sizes": torch.tensor([[40, 40]] * 2)} if kind == "llava_next" else {}
    if kind in ("idefics3", "smolvlm", "llava_next"):  # pictures of a conversation, tiles of a picture
        pixels = torch.stack([pixels] * (2 if kind == "llava_next" else 1), dim=1)
    with torch.no_grad():
        inner.get_image_features(pixel_values=pixels, **sizes)
    handle.remove()
    return caught[0].numpy()[:: 2 if kind == "llava_next" else 1]


def with_old_names(folder):
    """The file as it is in the wild: `vision_tower.vision_model.`."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(
        {name.replace("vision_tower.", "vision_tower.vision_model.", 1): each for name, each in state.items()},
        folder / "model.safetensors",
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_gives_what_its_language_model_takes_and_every_block_before(tmp_path, kind):
    options = {"image_grid_pinpoints": [[40, 40]]} if kind == "llava_next" else {}
    network = draw_parameters(vlm(kind, **options))
    network.save_pretrained(tmp_path / "whole")
    if kind in ("gemma3", "llava"):
        with_old_names(tmp_path / "whole")
    model = checkpoints.load(converters.convert(tmp_path / "whole", tmp_path / "model"))
    theirs = taken(network, kind)
    ours = np.asarray(rc.encode_patches(model.encoder, IMAGES))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    rows = {row.what: row for row in converters.check(str(tmp_path / "whole"), model)}
    assert all(row.typical <= TYPICAL and row.worst <= WORST for row in rows.values()), rows
    image = model.encoder.spec.image
    ends_early = kind.startswith("llava")
    assert image.pooling == "none" and image.final_norm != (ends_early or kind == "internvl")
    assert image.blocks.num_blocks == 3 - ends_early and len(rows) == image.blocks.num_blocks + 1
    assert "took the vision tower of a" in model.metadata["notes"][0]


@pytest.mark.slow
def test_nothing_but_the_towers_tensors_is_read_and_other_shards_need_not_be_there(tmp_path):
    source = save_random(vlm("gemma3"), tmp_path / "whole", max_shard_size="20KB")
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    tower = {file for name, file in index.items() if "vision_tower" in name}
    others = set(index.values()) - tower
    assert others
    whole = converters.read_checkpoint(str(source)).encoder
    for file in others:
        (source / file).unlink()
    mixed = {file for name, file in index.items() if "vision_tower" not in name} & tower
    for file in mixed:  # what is not read may be anything: here NaN, which is refused in what is
        state = safetensors.torch.load_file(source / file)
        state = {name: each if "vision_tower" in name else each * float("nan") for name, each in state.items()}
        safetensors.torch.save_file(state, source / file)
    found = converters.read_checkpoint(str(source))
    jax.tree.map(np.testing.assert_array_equal, found.encoder.params, whole.params)
    assert all("vision_model." in name for name in found.tensors)
    (source / sorted(tower)[0]).unlink()
    with pytest.raises(rc.UserError, match="lacks 1 of"):
        converters.read_checkpoint(str(source))


@pytest.mark.slow
def test_a_hubs_cache_that_is_laid_out_by_hand_is_enough(tmp_path, monkeypatch, regcache):
    snapshot = tmp_path / "hub" / "models--someone--vlm" / "snapshots" / "0123"
    save_random(vlm("paligemma"), snapshot, max_shard_size="20KB")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    index = json.loads((snapshot / "model.safetensors.index.json").read_text())["weight_map"]
    for file in set(index.values()) - {file for name, file in index.items() if "vision_tower" in name}:
        (snapshot / file).unlink()
    status, out, error = regcache("convert", "someone/vlm", "--out", tmp_path / "model")
    assert status == 0 and "note: took the vision tower of a PaliGemma" in out, error
    assert checkpoints.load(tmp_path / "model").encoder.spec.name == "vlm"


def edited(source, change):
    config = json.loads((source / "config.json").read_text())
    change(config)
    (source / "config.json").write_text(json.dumps(config))
    return str(source)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llava", lambda config: config["vision_config"].update(num_hidden_layers=5), "3 blocks in its vision tower, config.json says 5"),
        ("paligemma", lambda config: config["vision_config"].update(num_image_tokens=256), "num_image_tokens 256, its tower has 5 x 5"),
        ("llava", lambda config: config.update(vision_feature_layer=[-2, -1]), "vision_feature_layer should be one block before the last"),
        ("llava", lambda config: config.update(vision_feature_layer=-5), "before the first of 3 blocks"),
        ("llava", lambda config: config.update(vision_feature_select_strategy="cls"), "should be default or full"),
        ("gemma3", lambda config: config["vision_config"].update(model_type="vit"), "a vision tower of kind 'vit'"),
        ("gemma3", lambda config: config["vision_config"].update(image_size=48), "position_embedding.weight is .* expected"),
        ("llava", lambda config: config.update(model_type="idefics3", vision_config={}), "is a Idefics 3 without a vision tower"),
    ],
)  # fmt: skip
def test_what_a_vlm_says_twice_is_compared_and_what_cannot_be_read_is_said(tmp_path, kind, change, message):
    source = save_random(vlm(kind), tmp_path / "whole")
    with pytest.raises(rc.UserError, match=message):
        converters.read_checkpoint(edited(source, change))


@pytest.mark.slow
def test_a_language_model_that_is_quantised_does_not_bar_a_float_tower(tmp_path):
    source = save_random(vlm("gemma3"), tmp_path / "whole")
    found = converters.read_checkpoint(
        edited(source, lambda config: config.update(quantization_config={"quant_method": "fp8"}))
    )
    assert found.encoder.spec.image.pooling == "none"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told", "expected"),
    [
        ("llava_next", {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}, "resample": 3}, ("squash", "bicubic")),
        ("llava", {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}, "resample": 3}, ("shortest", "bicubic")),
        ("smolvlm", {"size": {"longest_edge": 160}, "max_image_size": {"longest_edge": 40}, "resample": 1}, ("squash", "lanczos")),
        ("gemma3", {"size": {"height": 40, "width": 40}, "resample": 2, "do_pan_and_scan": None}, ("squash", "bilinear")),
    ],
)  # fmt: skip
def test_pictures_are_prepared_as_the_squares_that_the_tower_sees(tmp_path, kind, told, expected):
    source = save_random(vlm(kind), tmp_path / "whole")
    (source / "preprocessor_config.json").write_text(json.dumps(told))
    pictures = converters.read_checkpoint(str(source)).encoder.spec.preprocessing
    assert (pictures.resize, pictures.filter, pictures.image_size) == (*expected, 40)


@pytest.mark.slow
def test_a_class_token_that_a_language_model_takes_too_is_said(tmp_path):
    source = save_random(vlm("llava", vision_feature_select_strategy="full"), tmp_path / "whole")
    found = converters.read_checkpoint(str(source))
    assert "takes the class token too" in " ".join(found.notes)
