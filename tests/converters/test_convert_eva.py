"""EVA-02-CLIP: timm's tower and open_clip's file of both, against its description in PyTorch."""

from __future__ import annotations

import eva
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from regcache_jax.converters.check import difference, run_ours
from regcache_jax.converters.conversion import read_checkpoint

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order


@pytest.fixture
def read(tmp_path):
    def read(texts):
        file = tmp_path / f"{texts}.safetensors"
        safetensors.torch.save_file(eva.drawn(texts), file)
        return read_checkpoint(str(file)).encoder

    return read


@pytest.mark.slow
def test_blocks_and_features_are_those_of_the_description(read):
    encoder = read(texts=False)
    images = np.random.default_rng(0).standard_normal((2, 40, 40, 3)).astype(np.float32)
    with torch.no_grad():
        entering, features = eva.tower(eva.drawn(texts=False), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    ours = run_ours(encoder, images, None)
    wanted = {f"image block {block}": hidden for block, hidden in enumerate(entering)} | {"image features": features}
    for what, values in wanted.items():
        row = difference(what, ours[what], values.numpy())
        assert row.typical <= TYPICAL and row.worst <= WORST, row


def test_open_clips_file_holds_the_same_tower_beside_a_clips_texts(read):
    alone, both = read(texts=False), read(texts=True)
    assert both.spec.image == alone.spec.image and both.spec.text.pooling == "argmax" and both.spec.text.blocks.causal
    jax.tree.map(np.testing.assert_array_equal, both.params.image, alone.params.image)
