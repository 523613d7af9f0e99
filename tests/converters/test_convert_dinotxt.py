"""dino.txt: the file of its head and texts beside that of its trunk, against its description in PyTorch."""

from __future__ import annotations

import dino_txt
import jax
import layouts
import numpy as np
import pytest
import torch
import transformers
from randomized import draw_parameters
from regcache_jax.converters.check import difference, run_ours
from regcache_jax.converters.conversion import read_checkpoint

from regcache_jax.core.errors import UserError

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
TRUNK = {
    "hidden_size": 128,
    "intermediate_size": 144,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
FILE, TRUNK_FILE = "dinov3_vitl16_dinotxt_small.pth", "dinov3_vitl16_pretrain_small.pth"


def trunk() -> torch.nn.Module:
    return draw_parameters(
        transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**TRUNK, num_register_tokens=3, key_bias=False))
    )


@pytest.fixture
def file(tmp_path):
    torch.save(dino_txt.drawn(), tmp_path / FILE)
    torch.save(layouts.meta_from_dinov3(trunk().state_dict(), 2), tmp_path / TRUNK_FILE)
    return tmp_path / FILE


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 40), (24, 56)])
def test_features_of_pictures_and_texts_and_scores_are_those_of_the_description(file, shape):
    encoder = read_checkpoint(str(file)).encoder
    rng, state = np.random.default_rng(0), dino_txt.drawn()
    images = rng.standard_normal((2, *shape, 3)).astype(np.float32)
    ids = rng.integers(3, 118, (3, 9)).astype(np.int32)
    ids[:, [2, 5, 8]] = 119 * np.eye(3, dtype=np.int32) + ids[:, [2, 5, 8]] * (1 - np.eye(3, dtype=np.int32))
    with torch.no_grad():
        tokens = trunk()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state
        image = dino_txt.pictures(state, tokens, registers=3)
        text = dino_txt.texts(state, torch.from_numpy(ids.astype(np.int64)))
        unit = [torch.nn.functional.normalize(each, dim=-1) for each in (image, text)]
        logits = state["logit_scale"].exp() * unit[0] @ unit[1].T
    ours = run_ours(encoder, images, ids)
    for what, wanted in (("image features", image), ("text features", text), ("logits", logits)):
        row = difference(what, ours[what], wanted.numpy())
        assert row.typical <= TYPICAL and row.worst <= WORST, row


def test_one_state_dict_of_the_whole_is_read_alike_and_the_head_alone_is_refused(file, tmp_path):
    apart = read_checkpoint(str(file)).encoder
    below = {f"visual_model.backbone.{name}": each for name, each in torch.load(tmp_path / TRUNK_FILE).items()}
    whole = tmp_path / "whole.pth"
    torch.save({**below, **dino_txt.drawn()}, whole)
    together = read_checkpoint(str(whole)).encoder
    jax.tree.map(np.testing.assert_array_equal, together.params, apart.params)
    (tmp_path / TRUNK_FILE).unlink()
    with pytest.raises(UserError, match="should stand beside it, there is none"):
        read_checkpoint(str(file))
