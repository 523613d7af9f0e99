"""CLIPs with other texts: MetaCLIP 2 (multilingual words, read at their first end) and MobileCLIP2-L/14 (texts that are not causal)."""

from __future__ import annotations

import json

import jax
import layouts
import numpy as np
import perception
import pytest
import torch
import transformers
from randomized import CLIP_TEXT, SMALL_IMAGE, clip, draw_parameters, save_random
from regcache_jax.converters.check import difference, random_inputs, run_ours
from regcache_jax.converters.conversion import read_checkpoint
from safetensors.torch import save_file

from regcache_jax import converters
from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError
from regcache_jax.encoders import catalog
from regcache_jax.models import folder as checkpoints

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
FULL = Choices(image_size=224)  # a row's pictures are of full size
WIDE = {"hidden_size": 64, "num_attention_heads": 1}
IMAGE, TEXT = {**SMALL_IMAGE, **WIDE}, {**CLIP_TEXT, **WIDE, "bos_token_id": 0, "pad_token_id": 1}


def metaclip2(end: int = 2) -> transformers.MetaClip2Model:
    """A small one with quick GELU, whose texts end with `end`."""
    config = transformers.MetaClip2Config(
        vision_config={**IMAGE, "hidden_act": "quick_gelu"},
        text_config={**TEXT, "eos_token_id": end, "hidden_act": "quick_gelu"},
        projection_dim=24,
    )
    return transformers.MetaClip2Model(config)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "kind", "begin", "pad"), [(2, "xlm", 0, 1), (1, "sentencepiece", None, 0)])
def test_a_metaclip_2_is_its_original_and_its_texts_are_read_at_their_first_end(
    tmp_path, regcache, end, kind, begin, pad
):
    source = save_random(metaclip2(end), tmp_path / "source")
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=40).save_pretrained(source)
    status, out, error = regcache("convert", source, "--out", tmp_path / "model", "--check")
    assert status == 0 and "logits" in out, error
    model = checkpoints.load(tmp_path / "model")
    rows = converters.check(str(source), model)
    assert all(row.typical <= TYPICAL and row.worst <= WORST for row in rows), rows
    words = model.encoder.spec.tokenization
    assert (words.kind, words.bos_id, words.pad_id, words.eos_id) == (kind, begin, pad, end)
    assert (model.encoder.spec.text.pooling, model.encoder.spec.text.eot_id) == ("eot", end)


def test_open_clips_file_gives_the_same_and_its_configuration_or_its_row_says_how_texts_end(tmp_path):
    network = metaclip2()
    wanted = read_checkpoint(str(save_random(network, tmp_path / "source"))).encoder
    (tmp_path / "open").mkdir()
    save_file(layouts.open_clip_from_clip(network.state_dict(), 3, 2), tmp_path / "open/open_clip_model.safetensors")
    named = read_checkpoint(str(tmp_path / "open"), name="ViT-H-14-worldwide,metaclip2_worldwide", choices=FULL).encoder
    told = {"quick_gelu": True, "text_cfg": {"pool_type": "eos", "eos_id": 2}}
    (tmp_path / "open/open_clip_config.json").write_text(json.dumps({"model_cfg": told}))
    configured = read_checkpoint(str(tmp_path / "open")).encoder
    jax.tree.map(np.testing.assert_array_equal, configured.params, wanted.params)
    assert configured.spec.text == wanted.spec.text and configured.spec.tokenization == wanted.spec.tokenization
    assert named.spec.tokenization == wanted.spec.tokenization and named.spec.text.pooling == "eot"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"pool_type": "last"}, "read at their end (pool_type argmax or eos), got 'last', causal True"),
        ({"no_causal_mask": True}, "got 'argmax', causal False"),
        ({"pool_type": "eos", "eos_id": 7}, "end with the id 2 (XLM-V's tokenizer) or 1 (mT5's), got 7"),
    ],
)
def test_texts_of_other_kinds_are_refused_in_one_line(tmp_path, text, said):
    state = draw_parameters(clip(TEXT, IMAGE)).state_dict()
    save_file(layouts.open_clip_from_clip(state, 3, 2), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    with pytest.raises(UserError) as error:
        read_checkpoint(str(tmp_path))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_metaclip_2_is_not_written_as_a_clip_which_would_read_its_texts_elsewhere(tmp_path):
    encoder = read_checkpoint(str(save_random(metaclip2(), tmp_path / "source"))).encoder
    with pytest.raises(UserError, match="Hugging Face CLIP cannot express text's pooling"):
        converters.write(encoder, "huggingface", tmp_path / "out")


@pytest.fixture
def mobile(tmp_path):
    """A MobileCLIP2 as open_clip writes it, with the image tower of a CLIP and the text tower of the description, and the CLIP."""
    network = draw_parameters(clip(TEXT, {**IMAGE, "hidden_act": "gelu"}, projection=perception.OUT))
    texts = perception.drawn(class_token=True, core=True, layer_scale=False)
    texts = {name: tensor for name, tensor in texts.items() if not name.startswith("visual.")}
    bias = torch.linspace(-1, 1, perception.OUT)
    stored = {
        f"visual.trunk.{name}": tensor for name, tensor in layouts.timm_from_clip(network.state_dict(), 3).items()
    }
    stored |= {"visual.trunk.head.bias": bias, "logit_scale": texts.pop("logit_scale")}
    save_file(
        stored | {f"text.{name}": tensor for name, tensor in texts.items()}, tmp_path / "open_clip_model.safetensors"
    )
    return network, texts, bias


def test_a_mobileclip_2_has_timms_tower_with_a_bias_and_texts_that_see_all_of_themselves(tmp_path, mobile):
    network, texts, bias = mobile
    told = {"model_cfg": {"text_cfg": {"no_causal_mask": True}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    read = read_checkpoint(str(tmp_path))
    assert read.format.name == "open_clip CLIP with timm's tower" and not read.encoder.spec.text.blocks.causal
    images, ids = random_inputs(read.encoder, 2)
    ours = run_ours(read.encoder, images, ids)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        features = network.visual_projection(network.vision_model(pixels).pooler_output) + bias
        words = perception.text(texts, torch.from_numpy(ids).long(), causal=False)
    for what, theirs in (("image features", features), ("text features", words)):
        row = difference(what, ours[what], theirs.numpy())
        assert row.typical <= TYPICAL and row.worst <= WORST, row


def test_a_mobileclip_2_without_configuration_asks_for_its_row(tmp_path, mobile):
    with pytest.raises(UserError, match="does not say whether its texts are causal; name its row"):
        read_checkpoint(str(tmp_path))
    named = read_checkpoint(str(tmp_path), name="MobileCLIP2-L-14,dfndr2b", choices=FULL).encoder
    row = catalog.get("timm/MobileCLIP2-L-14-OpenCLIP").spec
    assert named.spec.preprocessing == row.preprocessing and named.spec.image.projection_bias
    assert named.spec.text.blocks.causal is row.text.blocks.causal is False
