"""CLIPA in open_clip's names: no norm in front, the mean of patches before the final norm, texts of BERT's words read at the last place."""

from __future__ import annotations

import json

import layouts
import numpy as np
import pytest
import torch
import transformers
from randomized import CLIP_TEXT, SMALL_IMAGE, clip, draw_parameters
from regcache_jax.converters.check import difference, random_inputs, run_ours
from regcache_jax.converters.conversion import read_checkpoint
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from regcache_jax import converters
from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError
from regcache_jax.models import folder as checkpoints

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
WIDE = {"hidden_size": 64, "num_attention_heads": 1, "hidden_act": "gelu"}
VISION = {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}
TEXT = {"pool_type": "last", "no_causal_mask": True, "hf_tokenizer_name": "bert-base-uncased"}


@pytest.fixture(scope="module")
def network():
    return draw_parameters(clip({**CLIP_TEXT, **WIDE}, {**SMALL_IMAGE, **WIDE}))


def written(folder, network, vision=VISION, text=TEXT):
    """A folder as open_clip writes it."""
    state = layouts.open_clip_from_clip(network.state_dict(), 3, 2)
    kept = {name: tensor for name, tensor in state.items() if ".ln_pre." not in name}
    save_file(kept, folder / "open_clip_model.safetensors")
    told = {"model_cfg": {"vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {"resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    return str(folder)


def by_transformers(network, images, ids):
    """Features of pictures and texts by the parts of transformers' CLIP, put together as CLIPA has them."""
    vision, text = network.vision_model, network.text_model
    with torch.no_grad():
        hidden = vision.embeddings(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        for layer in vision.encoder.layers:
            hidden = layer(hidden, None)
        pictures = network.visual_projection(vision.post_layernorm(hidden[:, 1:].mean(dim=1)))
        hidden = text.embeddings(torch.from_numpy(ids).long())
        for layer in text.encoder.layers:
            hidden = layer(hidden, None)
        return pictures, network.text_projection(text.final_layer_norm(hidden)[:, -1])


@pytest.mark.slow
def test_features_of_pictures_and_texts_are_those_of_its_definition(tmp_path, network):
    encoder = read_checkpoint(written(tmp_path, network)).encoder
    assert encoder.spec.image.pooling == "normed_mean" and not encoder.spec.image.pre_norm
    images, ids = random_inputs(encoder, 2)
    ours = run_ours(encoder, images, ids)
    for what, theirs in zip(("image features", "text features"), by_transformers(network, images, ids), strict=True):
        row = difference(what, ours[what], theirs.numpy())
        assert row.typical <= TYPICAL and row.worst <= WORST, row


def test_its_row_says_the_same_and_how_pictures_are_prepared(tmp_path, network):
    wanted = read_checkpoint(written(tmp_path, network)).encoder
    (tmp_path / "open_clip_config.json").unlink()
    named = read_checkpoint(str(tmp_path), name="ViT-H-14-CLIPA,datacomp1b", choices=Choices(image_size=224)).encoder
    assert named.spec.text.pooling == "last" and named.spec.tokenization == wanted.spec.tokenization
    pictures = named.spec.preprocessing
    assert (pictures.resize, pictures.filter, pictures.mean[0]) == ("squash", "bilinear", 0.485)


@pytest.mark.parametrize(
    ("vision", "text", "said"),
    [
        ({"pool_type": "avg"}, TEXT, "pooled by their class token (pool_type tok), or all as in a CLIPA"),
        (VISION, {"pool_type": "argmax"}, "pooled by their class token (pool_type tok), or all as in a CLIPA"),
        ({**VISION, "act_kwargs": {"approximate": "tanh"}}, TEXT, "act_kwargs of both towers should be absent"),
    ],
)
def test_other_poolings_and_activations_are_refused_in_one_line(tmp_path, network, vision, text, said):
    with pytest.raises(UserError) as error:
        read_checkpoint(written(tmp_path, network, vision, text))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_words_are_berts_without_its_end(tmp_path, network):
    words = [
        "[PAD]",
        *(f"[unused{number}]" for number in range(99)),
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "photo",
        "cat",
        "##s",
    ]
    stored = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    stored.normalizer, stored.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    stored.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    stored.save(str(tmp_path / "tokenizer.json"))
    model = checkpoints.load(converters.convert(written(tmp_path, network), tmp_path / "model"))
    texts = ["a photo", "A  CATS &amp; a photo", "", "a cat " * 20]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=stored, pad_token="[PAD]", sep_token="[SEP]")
    cleaned = [text.replace("&amp;", "&").strip() for text in texts]
    theirs = np.array(fast(cleaned, max_length=11, padding="max_length", truncation=True)["input_ids"])
    np.testing.assert_array_equal(model.tokenize(texts), np.where(theirs == 102, 0, theirs))
