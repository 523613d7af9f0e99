"""C-RADIO by the names of its folders, against its definition: class tokens, positions of patches alone, pixels by its own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import radio
import torch
from regcache_jax.converters.check import difference, run_ours
from regcache_jax.converters.conversion import read_checkpoint

from regcache_jax import converters
from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order


@pytest.fixture(scope="module")
def state():
    return radio.drawn()


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [40, 96])
def test_features_and_patches_are_those_of_its_definition_at_a_smaller_and_a_larger_grid(tmp_path, state, pixels):
    encoder = read_checkpoint(radio.folder(tmp_path, state), choices=Choices(image_size=pixels)).encoder
    images = np.random.default_rng(0).standard_normal((2, pixels, pixels, 3)).astype(np.float32)
    theirs, ours = radio.by_definition(state, images), run_ours(encoder, images, None)
    assert ours["image features"].shape == (2, 2 * radio.WIDTH) and encoder.spec.image.num_protected == radio.TOKENS
    row = difference("image features", ours["image features"], theirs[:, :2].flatten(1).numpy())
    assert row.typical <= TYPICAL and row.worst <= WORST, row
    assert encoder.spec.preprocessing.mean == pytest.approx((0.4, 0.5, 0.6))


def test_it_is_written_again_under_its_own_names(tmp_path, state):
    encoder = read_checkpoint(radio.folder(tmp_path, state)).encoder
    written = converters.export(encoder, "C-RADIO")
    for name, tensor in state.items():
        if name.startswith(radio.BELOW):
            np.testing.assert_array_equal(written[name.removeprefix(radio.BELOW)], tensor.numpy())


def test_tokens_that_are_read_elsewhere_and_a_file_without_their_numbers_are_refused_in_one_line(tmp_path, state):
    with pytest.raises(UserError, match=r"reads the tokens \[0, 2\]; those that are read must be the first ones"):
        read_checkpoint(radio.folder(tmp_path, {**state, "radio_model.summary_idxs": torch.tensor([0, 2])}))
    (tmp_path / "model.safetensors").unlink()
    left = {name: tensor for name, tensor in state.items() if not name.endswith("summary_idxs")}
    with pytest.raises(UserError, match="lacks summary_idxs, which says how many of its 5 tokens in front are read"):
        read_checkpoint(radio.folder(tmp_path, left))


def test_what_adaptors_and_a_rotation_of_patches_hold_is_left_out_and_said(tmp_path, state):
    more = {
        "radio_model.adaptors.sam.weight": torch.ones(2),
        "radio_model.feature_normalizer.tx": torch.eye(radio.WIDTH),
    }
    notes = read_checkpoint(radio.folder(tmp_path, {**state, **more})).notes
    assert "adaptors.sam.weight, feature_normalizer.tx" in notes[0]
