"""Checkpoints as people really have them, each by `regcache convert`: the encoder is the right one, or one line says why not.

They mirror the situations that the project was given (`cases/`), as small inputs; those of data are in cli/test_data_cases.py."""

from __future__ import annotations

import argparse
import json
import re
import shutil

import jax
import layouts
import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from PIL import Image
from randomized import CLIP_TEXT, SMALL, SMALL_IMAGE, clip, draw_parameters, save_random, siglip
from test_wrappers import WIDE, below, dinov2, trained

import regcache_jax as rc

ROW = "open_clip:ViT-B-32,laion2b_s34b_b79k"


@pytest.fixture
def converted(regcache, tmp_path):
    """Runs `regcache convert`; returns the parameters and what is said, or the line of a refusal alone."""

    def run(source, *options):
        out = tmp_path / "model"
        shutil.rmtree(out, ignore_errors=True)
        status, printed, err = regcache("convert", source, *options, "--out", out)
        if status:
            (line,) = [line for line in err.splitlines() if line.startswith("regcache:")]
            assert status == 1 and not out.exists() and "Traceback" not in err
            return line
        return rc.load(out).encoder.params, printed + err

    return run


def same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small CLIP B/32 in open_clip's names."""
    network = clip({**CLIP_TEXT, **WIDE}, {**SMALL_IMAGE, **WIDE, "image_size": 224, "patch_size": 32})
    save_random(network, tmp_path_factory.mktemp("clip"))
    return layouts.open_clip_from_clip(network.state_dict(), 3, 2)


TRAINERS = {
    "bare/epoch_32.pt": trained,
    "ddp/epoch_32.pt": lambda state: trained(state, "module."),
    "compiled/epoch_32.pt": lambda state: trained(state, "_orig_mod."),
    "ddp_compiled/epoch_32.pt": lambda state: trained(state, "module._orig_mod."),
    "compiled_ddp/epoch_32.pt": lambda state: trained(state, "_orig_mod.module."),
    "lightning/epoch_32.pt": lambda state: {
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {"model." + name: tensor for name, tensor in state.items()},
        "hyper_parameters": {"lr": 1e-4},
    },
    "model_state_dict/epoch_32.pt": lambda state: {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}},
    "scale_1/epoch_32.pt": lambda state: trained(state | {"logit_scale": state["logit_scale"].reshape(1)}),
    "tar/model_best.pth.tar": trained,
    "ckpt/last.ckpt": trained,
}


@pytest.mark.slow
def test_whatever_an_open_clip_trainer_wraps_around_the_weights_they_are_the_same(converted, weights, tmp_path):
    torch.save(weights, tmp_path / "plain.pt")
    plain, _ = converted(tmp_path / "plain.pt", "--name", ROW)
    for name, wrap in TRAINERS.items():
        file = tmp_path / name
        file.parent.mkdir()
        torch.save(wrap(weights), file)
        found, said = converted(file, "--name", ROW)
        same(found, plain)
        assert "took the names below" in said, name


OTHERS = [
    (lambda state: trained(state) | {"state_dict_ema": state}, "an exponential moving average, EMA"),
    (lambda state: trained(state) | {"args": argparse.Namespace(lr=1e-3)}, r"argparse.Namespace.*To keep its tensors"),
    (lambda state: trained(state) | {"best_acc": np.float64(0.7)}, r"numpy.*To keep its tensors alone"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("wrap", "message"), OTHERS, ids=["ema", "args", "np_metric"])
def test_what_a_trainer_leaves_beside_the_weights_is_asked_about_or_named(converted, weights, tmp_path, wrap, message):
    torch.save(wrap(weights), tmp_path / "epoch_32.pt")
    assert re.search(message, converted(tmp_path / "epoch_32.pt", "--name", ROW))


@pytest.mark.slow
def test_an_offset_of_siglips_loss_is_kept(converted, weights, tmp_path):
    torch.save(trained(weights | {"logit_bias": torch.tensor(-10.0)}, "module."), tmp_path / "epoch_32.pt")
    found, _ = converted(tmp_path / "epoch_32.pt", "--name", ROW)
    assert float(found.logit_bias) == -10.0


@pytest.mark.slow
def test_of_dinov2s_trainer_the_teachers_backbone_is_taken(converted, tmp_path):
    heads = {"dino_head.mlp.0.weight": torch.zeros(8, 64), "dino_head.last_layer.weight_g": torch.zeros(8, 1)}
    student = {name: tensor + 1 for name, tensor in dinov2().items()}
    torch.save(dinov2(), tmp_path / "plain.pth")
    plain, _ = converted(tmp_path / "plain.pth")
    for name, tree in {
        "teacher_checkpoint.pth": {"teacher": {**below("backbone", dinov2()), **heads}},
        "teacher_checkpoint_chunked.pth": {"teacher": {**below("backbone", dinov2(chunked=True)), **heads}},
        "model_final.rank_0.pth": {
            "model": {**below("student.backbone", student), **below("teacher.backbone", dinov2())}
        },
        "backbone.pth": below("backbone", dinov2()),
        "module.pth": below("module", dinov2()),
    }.items():
        torch.save(tree, tmp_path / name)
        found, said = converted(tmp_path / name)
        same(found, plain)
        assert "took the names below" in said, name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sound folders of Hugging Face, by family."""
    root = tmp_path_factory.mktemp("folders")
    return {"clip": save_random(clip(), root / "clip"), "siglip": save_random(siglip(), root / "siglip")}


def edited(folders, tmp_path, family="clip", weights=None, processor=None, **changes):
    """A copy of a folder with other weights, a processor, or other things in its configuration."""
    folder = tmp_path / "source"
    shutil.copytree(folders[family], folder)
    if weights is not None:
        state = safetensors.torch.load_file(folder / "model.safetensors")
        safetensors.torch.save_file(weights(state), folder / "model.safetensors")
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **processor}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


SIDE = SMALL_IMAGE["image_size"]
PROCESSOR = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
ADAPTER = "vision_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight"
REFUSED = {
    "siglip_no_head": (
        {
            "family": "siglip",
            "weights": lambda state: {n: t for n, t in state.items() if "vision_model.head." not in n},
        },
        "without its pooling head",
    ),
    "peft_unmerged": ({"weights": lambda state: state | {ADAPTER: torch.zeros(4, 48)}}, "adapters (LoRA"),
    "fp8": (
        {"weights": lambda state: {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for n, t in state.items()}},
        "F8_E4M3",
    ),
    "llava": ({"model_type": "llava"}, "is a LLaVA without a vision tower: none of its tensors is below vision_tower"),
    "processor_larger_than_model": (
        {"processor": {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}},
        f"the processor makes pictures of 64 px, the tower takes {SIDE} px",
    ),
    "crop_larger_than_size": (
        {"processor": {"size": {"shortest_edge": SIDE - 8}}},
        f"crop_size {SIDE} is larger than size {SIDE - 8}",
    ),
    "nonsquare": ({"processor": {"size": {"height": SIDE, "width": 32}}}, f"size is {SIDE} x 32"),
    "nearest": ({"processor": {"resample": 0}}, "resample 1 (lanczos), 2 (bilinear) or 3 (bicubic)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_read_as_something_else_is_refused_by_name(converted, folders, tmp_path, kind):
    changes, message = REFUSED[kind]
    assert message in converted(edited(folders, tmp_path, **changes))


def test_an_adapter_alone_is_named(converted, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    safetensors.torch.save_file({ADAPTER: torch.zeros(4, 48)}, tmp_path / "source" / "adapter_model.safetensors")
    assert "holds an adapter (LoRA and the like) without the weights" in converted(tmp_path / "source")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_weights_alone_do_not_say_their_activation(converted, folders, tmp_path, family):
    torch.save(safetensors.torch.load_file(folders[family] / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert "without config.json, which alone says its activation" in converted(tmp_path / "pytorch_model.bin")


def test_a_timm_tower_with_a_classifier_is_no_clip(converted, folders, tmp_path):
    state = safetensors.torch.load_file(folders["clip"] / "model.safetensors")
    tower = layouts.timm_from_clip(state, 3)
    classifier = {"head.weight": torch.zeros(1000, 48), "head.bias": torch.zeros(1000)}
    safetensors.torch.save_file(tower | classifier, tmp_path / "model.safetensors")
    line = converted(tmp_path / "model.safetensors", "--name", "openai/clip-vit-base-patch32")
    assert "head.weight has 1000 outputs and a bias" in line and "projects to 512" in line


@pytest.mark.slow
def test_classifiers_wrappers_and_other_types_give_the_same_backbone(converted, folders, tmp_path):
    plain, _ = converted(folders["clip"])
    on_top = {"classifier.weight": torch.zeros(5, 48), "classifier.bias": torch.zeros(5)}
    found, said = converted(edited(folders, tmp_path, weights=lambda state: state | on_top))
    same(found, plain)
    assert "left out what was trained on top of the encoder: classifier.bias, classifier.weight" in said
    shutil.rmtree(tmp_path / "source")
    bare = edited(folders, tmp_path)
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(
        json.dumps(
            {name: value for name, value in config.items() if name not in ("architectures", "transformers_version")}
        )
    )
    same(converted(bare)[0], plain)
    state = safetensors.torch.load_file(bare / "model.safetensors")
    (bare / "model.safetensors").unlink()
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, bare / "pytorch_model.bin")
    same(converted(bare)[0], plain)
    shutil.copytree(folders["clip"], tmp_path / "sentences" / "0_CLIPModel")
    part = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (tmp_path / "sentences" / "modules.json").write_text(json.dumps([part]))
    (tmp_path / "sentences" / "config_sentence_transformers.json").write_text("{}")
    same(converted(tmp_path / "sentences")[0], plain)


def test_architectures_of_another_family_are_refused_with_both_values(folders, tmp_path):
    config = json.loads((edited(folders, tmp_path) / "config.json").read_text())
    for named in (["SiglipModel"], ["CLIPModel", "Dinov2Model"], ["Siglip2Model"]):
        (tmp_path / "source" / "config.json").write_text(json.dumps(config | {"architectures": named}))
        with pytest.raises(rc.UserError, match=f"says architectures {named[-1]}, .* those of Hugging Face CLIP"):
            rc.convert(tmp_path / "source", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_processor_that_does_not_normalise_leaves_values_in_0_to_1(converted, folders, tmp_path):
    converted(edited(folders, tmp_path, processor={"do_normalize": False}))
    values = rc.load(tmp_path / "model").preprocess(Image.new("RGB", (50, 50), (0, 255, 51)))
    np.testing.assert_allclose(values[0, 0], [0, 1, 0.2], atol=1e-6)


CLIP_MERGES = [("c", "a"), ("ca", "t</w>"), ("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>")]


@pytest.mark.slow
def test_tokens_that_were_added_to_a_clip_move_no_end_of_text(converted, regcache, tmp_path):
    """Textual inversion: two tokens behind the end mark, whose id is no longer the largest."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, CLIP_MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in CLIP_MERGES))
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    end = len(words) - 1
    tokenizer.add_tokens(["<cat-toy>", "<my-style>"])
    text = {
        **CLIP_TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    network = draw_parameters(clip(text, SMALL_IMAGE | SMALL))
    source = tmp_path / "source"
    network.save_pretrained(source)
    tokenizer.save_pretrained(source)
    converted(source)
    texts = ["a photo of a cat", "a cat", "photo", "a photo of a <cat-toy>"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 40), (9, 99, 199)).save(tmp_path / "pictures" / "a.png")
    asked = ("--images", tmp_path / "pictures", "--texts", tmp_path / "texts.txt", "--out", tmp_path / "f.npz")
    assert regcache("embed", tmp_path / "model", *asked)[0] == 0
    ours = np.load(tmp_path / "f.npz")["text_features"]
    given = tokenizer(texts, padding="max_length", max_length=11, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = network.text_model(**given).pooler_output
        theirs = torch.nn.functional.normalize(network.text_projection(states), dim=-1).numpy()
    np.testing.assert_allclose((ours * theirs).sum(-1), 1, atol=1e-5)
    assert np.abs(ours[0] - ours[1]).max() > 0.01
