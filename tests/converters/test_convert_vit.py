"""Plain ViTs from Hugging Face's and timm's files, with their classifier: the numbers of transformers, and facts stated twice."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from randomized import SMALL_IMAGE, draw_parameters, save_random

import regcache_jax as rc
from regcache_jax import converters
from regcache_jax.models import folder as checkpoints

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
NAMES = ["tench", "goldfish", "great white shark", "hen", "ostrich"]


def vit(**options) -> torch.nn.Module:
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**{**SMALL_IMAGE, **labels, **options}))


def encoder_alone(kind: str, **options) -> torch.nn.Module:
    config = getattr(transformers, f"{kind}Config")(**SMALL_IMAGE, **options)
    return getattr(transformers, f"{kind}Model")(config)


NETWORKS = {
    "classifier": vit,
    "other activation and patches": lambda: vit(hidden_act="gelu_pytorch_tanh", patch_size=10, layer_norm_eps=1e-5),
    "no biases": lambda: vit(qkv_bias=False),
    "encoder with its pooler": lambda: encoder_alone("ViT"),
    "MAE": lambda: encoder_alone("ViTMAE"),
    "MSN": lambda: encoder_alone("ViTMSN"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_vit_folder_gives_the_hidden_states_features_and_logits_of_transformers(tmp_path, kind):
    source = save_random(NETWORKS[kind](), tmp_path / "source")
    size = {"height": 40, "width": 40}
    (transformers.ViTImageProcessorPil(size=size)).save_pretrained(source)
    model = checkpoints.load(converters.convert(source, tmp_path / "model"))
    rows = {row.what: row for row in converters.check(str(source), model)}
    assert all(row.typical <= TYPICAL and row.worst <= WORST for row in rows.values()), rows
    assert {"image block 2", "image features", "pixels of a 77 x 53 picture"} <= set(rows)
    assert ("logits" in rows) == (model.encoder.spec.num_classes is not None)
    assert model.encoder.spec.family == "vit" and not model.encoder.spec.normalize


def folder_of_pictures(folder):
    """Two pictures of two of the classes, whose numbers here are not the classifier's."""
    for number, name in enumerate(("Ostrich", "Tench")):
        (folder / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name / "one.png")
    return folder


@pytest.mark.slow
def test_the_classifier_and_its_names_are_kept_in_the_folder_and_survive_quantisation(tmp_path, regcache):
    source = save_random(vit(), tmp_path / "source")
    model = checkpoints.load(converters.convert(source, tmp_path / "model"))
    assert model.labels == NAMES and model.encoder.spec.num_classes == 5
    images = np.random.default_rng(0).standard_normal((2, 40, 40, 3)).astype(np.float32)
    with torch.no_grad():
        network = transformers.ViTForImageClassification.from_pretrained(source)
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    np.testing.assert_allclose(rc.classify(model.encoder, images), theirs, rtol=1e-4, atol=1e-5)
    pictures = ("--dataset", "folder", "--data-dir", folder_of_pictures(tmp_path / "pictures"))
    status, _, error = regcache("quantize", tmp_path / "model", "--scheme", "w8", "--out", tmp_path / "int8", *pictures)
    assert status == 0, error
    rounded = checkpoints.load(tmp_path / "int8")
    assert rounded.labels == NAMES
    np.testing.assert_allclose(rc.classify(rounded.encoder, images), theirs, atol=0.05 * np.abs(theirs).max())
    result = tmp_path / "result.json"
    models = ("evaluate", tmp_path / "model", tmp_path / "int8")
    status, _, error = regcache(*models, "--task", "classification", *pictures, "--json", result)
    assert status == 0, error
    exact, short = json.loads(result.read_text())
    own = [
        int(np.argmax(rc.classify(model.encoder, model.preprocess(each)[None])))
        for each in sorted((tmp_path / "pictures").rglob("*.png"))
    ]
    assert exact["metrics"]["acc1"] == np.mean([own[0] == 4, own[1] == 0])  # ostrich before tench in the folder's order
    assert short["metrics"]["cosine"] > 0.99 and short["quantization"]["float_reference"] == exact["metrics"]


@pytest.mark.slow
def test_names_of_transformers_5_and_a_mae_with_its_decoder_are_read_too(tmp_path):
    network = draw_parameters(vit())
    folder = tmp_path / "five"
    folder.mkdir()
    network.config.save_pretrained(folder)
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    old = save_random(network, tmp_path / "four")
    trees = [converters.read_checkpoint(str(each)).encoder.params for each in (folder, old)]
    jax.tree.map(np.testing.assert_array_equal, *trees)
    mae = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SMALL_IMAGE, decoder_num_hidden_layers=1))
    read = converters.read_checkpoint(str(save_random(mae, tmp_path / "mae")))
    assert read.encoder.spec.num_classes is None and "decoder." in read.notes[0]


def timm_state(layer_scale: bool, class_position: bool) -> dict[str, torch.Tensor]:
    """Random tensors under timm's names, written out by hand: heads are 64 wide."""
    width, mlp, patch, grid, blocks = 64, 96, 8, 5, 2
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int, around: float = 0.0, scale: float = 0.3) -> torch.Tensor:
        return around + scale * torch.randn(shape, generator=draw)

    state = {
        "cls_token": drawn(1, 1, width),
        "pos_embed": drawn(1, grid * grid + int(class_position), width),
        "patch_embed.proj.weight": drawn(width, 3, patch, patch, scale=0.1),
        "patch_embed.proj.bias": drawn(width),
        "norm.weight": drawn(width, around=1.0),
        "norm.bias": drawn(width),
        "head.weight": drawn(5, width),
        "head.bias": drawn(5),
    }
    for number in range(blocks):
        block = f"blocks.{number}"
        for name, outputs, inputs in (
            ("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.fc1", mlp, width), ("mlp.fc2", width, mlp),
        ):  # fmt: skip
            state[f"{block}.{name}.weight"] = drawn(outputs, inputs, scale=inputs**-0.5)
            state[f"{block}.{name}.bias"] = drawn(outputs)
        for norm in ("norm1", "norm2"):
            state[f"{block}.{norm}.weight"], state[f"{block}.{norm}.bias"] = drawn(width, around=1.0), drawn(width)
        if layer_scale:
            state[f"{block}.ls1.gamma"], state[f"{block}.ls2.gamma"] = (
                drawn(width, around=1.0),
                drawn(width, around=1.0),
            )
    return state


def timm_features(state: dict[str, torch.Tensor], images: np.ndarray) -> np.ndarray:
    """A plain ViT's logits, in the order of its definition."""
    functional, width = torch.nn.functional, 64
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    patches = functional.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 8)
    patches = patches.flatten(2).transpose(1, 2)
    table, cls = state["pos_embed"], state["cls_token"].expand(len(images), -1, -1)
    if table.shape[1] == patches.shape[1]:
        hidden = torch.cat([cls, patches + table], dim=1)
    else:
        hidden = torch.cat([cls, patches], dim=1) + table
    for number in range(2):
        own = {name.removeprefix(f"blocks.{number}."): each for name, each in state.items()}
        normed = functional.layer_norm(hidden, (width,), own["norm1.weight"], own["norm1.bias"], 1e-6)
        query, key, value = functional.linear(normed, own["attn.qkv.weight"], own["attn.qkv.bias"]).chunk(3, dim=-1)
        weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(width), dim=-1)  # one head
        update = functional.linear(weights @ value, own["attn.proj.weight"], own["attn.proj.bias"])
        hidden = hidden + update * own.get("ls1.gamma", torch.ones(width))
        normed = functional.layer_norm(hidden, (width,), own["norm2.weight"], own["norm2.bias"], 1e-6)
        up = functional.gelu(functional.linear(normed, own["mlp.fc1.weight"], own["mlp.fc1.bias"]))
        update = functional.linear(up, own["mlp.fc2.weight"], own["mlp.fc2.bias"])
        hidden = hidden + update * own.get("ls2.gamma", torch.ones(width))
    last = "norm" if "norm.weight" in state else "fc_norm"
    pooled = hidden[:, 0] if last == "norm" else hidden[:, 1:].mean(dim=1)
    normed = functional.layer_norm(pooled, (width,), state[f"{last}.weight"], state[f"{last}.bias"], 1e-6)
    return functional.linear(normed, state["head.weight"], state["head.bias"]).numpy()


CONFIG = {
    "architecture": "vit_tiny_patch8_40",
    "num_classes": 5,
    "global_pool": "token",
    "label_names": ["n01", "n02", "n03", "n04", "n05"],
    "label_descriptions": {"n01": "tench", "n02": "goldfish"},
    "pretrained_cfg": {
        "input_size": [3, 40, 40], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    },
}  # fmt: skip


def timm_folder(folder, state, config=CONFIG):
    folder.mkdir()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("layer_scale", "class_position"), [(False, True), (True, False)], ids=["augreg", "DeiT III"])
def test_a_vit_in_timms_names_gives_the_logits_of_its_definition(tmp_path, layer_scale, class_position):
    state = timm_state(layer_scale, class_position)
    model = checkpoints.load(converters.convert(timm_folder(tmp_path / "timm", state), tmp_path / "model"))
    images = np.random.default_rng(0).standard_normal((2, 40, 40, 3)).astype(np.float32)
    np.testing.assert_allclose(rc.classify(model.encoder, images), timm_features(state, images), rtol=1e-4, atol=1e-4)
    pictures = model.encoder.spec.preprocessing
    assert (pictures.resize, pictures.resize_size, pictures.filter) == ("shortest", 44, "bicubic")
    assert model.labels == ["tench", "goldfish", "n03", "n04", "n05"]
    assert model.metadata["layout"] == "timm ViT"


@pytest.mark.slow
def test_a_vit_that_is_pooled_by_the_mean_norms_it_behind_the_pooling(tmp_path):
    renamed = {"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"}
    state = {renamed.get(name, name): tensor for name, tensor in timm_state(False, True).items()}
    folder = timm_folder(tmp_path / "timm", state, {**CONFIG, "global_pool": "avg"})
    model = checkpoints.load(converters.convert(folder, tmp_path / "model"))
    images = np.random.default_rng(0).standard_normal((2, 40, 40, 3)).astype(np.float32)
    np.testing.assert_allclose(rc.classify(model.encoder, images), timm_features(state, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_classes": 7}, r"head.weight has 5 classes, config.json says 7 \(num_classes\)"),
        ({"label_names": ["a", "b"]}, r"has 5 classes, config.json says 2 \(names\)"),
        ({"global_pool": "avg"}, "pooled by its class token .*config.json says 'avg'"),
        (
            {"pretrained_cfg": {"input_size": [3, 224, 224]}},
            r"40 px by its positions, config.json says input_size \[3, 224",
        ),
        ({"pretrained_cfg": {"input_size": [3, 40, 40], "crop_mode": "border"}}, "crop_mode center or squash"),
        (None, "is a ViT in timm's names without config.json"),
    ],
)
def test_what_a_timm_checkpoint_says_twice_is_compared(tmp_path, changed, message):
    config = None if changed is None else {**CONFIG, **changed}
    with pytest.raises(rc.UserError, match=message):
        converters.read_checkpoint(str(timm_folder(tmp_path / "timm", timm_state(False, True), config)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"id2label": {"0": "cat", "1": "dog"}}, r"classifier.weight has 5 classes, config.json says 2 \(names\)"),
        ({"id2label": {"0": "cat", "2": "dog"}}, r"id2label should have the numbers 0\.\.1"),
        ({"image_size": 48}, "embeddings.position_embeddings is .* expected"),
        ({"model_type": "clip"}, "config.json says model_type 'clip', the tensors are those of Hugging Face ViT"),
        ({"qkv_bias": False}, "not known: 9 .*query.bias"),
    ],
)
def test_what_a_hugging_face_vit_says_twice_is_compared(tmp_path, changed, message):
    source = save_random(vit(), tmp_path / "source")
    told = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**told, **changed}))
    with pytest.raises(rc.UserError, match=message):
        converters.read_checkpoint(str(source))


@pytest.mark.slow
def test_a_processor_for_other_pictures_and_a_distilled_deit_are_refused(tmp_path):
    source = save_random(vit(), tmp_path / "source")
    (source / "preprocessor_config.json").write_text(json.dumps({"size": 48}))
    with pytest.raises(rc.UserError, match="makes pictures of 48 px, the tower takes 40 px"):
        converters.read_checkpoint(str(source))
    distilled = save_random(encoder_alone("DeiT"), tmp_path / "deit")
    with pytest.raises(rc.UserError, match="distilled DeiT with a second class token"):
        converters.read_checkpoint(str(distilled))
