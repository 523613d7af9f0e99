"""C-RADIO by the names of its folders, against its definition: class tokens, positions of patches alone, pixels by its own numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from regcache_jax.converters.check import difference, run_ours
from regcache_jax.converters.conversion import read_checkpoint
from safetensors.torch import save_file

from regcache_jax import converters
from regcache_jax.core.conversion import Choices
from regcache_jax.core.errors import UserError

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
WIDTH, PATCH, GRID, TOKENS, BLOCKS, MLP = 64, 8, 9, 5, 2, 96
BELOW = "radio_model.model."
linear, layer_norm = torch.nn.functional.linear, torch.nn.functional.layer_norm


@pytest.fixture(scope="module")
def state():
    """Random tensors under the names of a folder; heads are 64 wide."""
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int, around: float = 0.0) -> torch.Tensor:
        return around + (0.3 if len(shape) == 1 else shape[-1] ** -0.5) * torch.randn(shape, generator=draw)

    held = {
        "patch_generator.embedder.weight": drawn(WIDTH, 3 * PATCH**2),
        "patch_generator.pos_embed": drawn(1, GRID**2, WIDTH),
        "patch_generator.cls_token.token": drawn(TOKENS, WIDTH),
    }
    for block in range(BLOCKS):
        for norm in ("norm1", "norm2"):
            held[f"blocks.{block}.{norm}.weight"], held[f"blocks.{block}.{norm}.bias"] = (
                drawn(WIDTH, around=1),
                drawn(WIDTH),
            )
        sizes = {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (MLP, WIDTH),
            "mlp.fc2": (WIDTH, MLP),
        }
        for name, (outputs, inputs) in sizes.items():
            held[f"blocks.{block}.{name}.weight"], held[f"blocks.{block}.{name}.bias"] = (
                drawn(outputs, inputs),
                drawn(outputs),
            )
    tensors = {f"{BELOW}{name}": tensor for name, tensor in held.items()}
    tensors["radio_model.input_conditioner.norm_mean"] = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)
    tensors["radio_model.input_conditioner.norm_std"] = torch.tensor([0.2, 0.3, 0.25]).reshape(3, 1, 1)
    tensors["radio_model.summary_idxs"] = torch.tensor([0, 1])
    return tensors


def by_definition(state, images):
    """What leaves the last block, of pictures that are normalised."""
    own = {name.removeprefix(BELOW): tensor for name, tensor in state.items()}
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    patches = torch.nn.functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
    side = math.isqrt(patches.shape[1])
    table = own["patch_generator.pos_embed"].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, (side, side), mode="bilinear", align_corners=False)
    hidden = linear(patches, own["patch_generator.embedder.weight"]) + table.flatten(2).transpose(1, 2)
    hidden = torch.cat([own["patch_generator.cls_token.token"].expand(len(images), -1, -1), hidden], dim=1)
    for block in range(BLOCKS):
        at = {name.removeprefix(f"blocks.{block}."): tensor for name, tensor in own.items()}
        normed = layer_norm(hidden, (WIDTH,), at["norm1.weight"], at["norm1.bias"], 1e-6)
        query, key, value = linear(normed, at["attn.qkv.weight"], at["attn.qkv.bias"]).chunk(3, dim=-1)
        mixed = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(WIDTH), dim=-1) @ value  # one head
        hidden = hidden + linear(mixed, at["attn.proj.weight"], at["attn.proj.bias"])
        normed = layer_norm(hidden, (WIDTH,), at["norm2.weight"], at["norm2.bias"], 1e-6)
        up = torch.nn.functional.gelu(linear(normed, at["mlp.fc1.weight"], at["mlp.fc1.bias"]))
        hidden = hidden + linear(up, at["mlp.fc2.weight"], at["mlp.fc2.bias"])
    return hidden


def folder(tmp_path, state):
    """A folder as the hub has it."""
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["RADIOModel"], "model_type": ""}))
    return str(tmp_path)


@pytest.mark.parametrize("pixels", [40, 96])
def test_features_and_patches_are_those_of_its_definition_at_a_smaller_and_a_larger_grid(tmp_path, state, pixels):
    encoder = read_checkpoint(folder(tmp_path, state), choices=Choices(image_size=pixels)).encoder
    images = np.random.default_rng(0).standard_normal((2, pixels, pixels, 3)).astype(np.float32)
    theirs, ours = by_definition(state, images), run_ours(encoder, images, None)
    assert ours["image features"].shape == (2, 2 * WIDTH) and encoder.spec.image.num_protected == TOKENS
    row = difference("image features", ours["image features"], theirs[:, :2].flatten(1).numpy())
    assert row.typical <= TYPICAL and row.worst <= WORST, row
    assert encoder.spec.preprocessing.mean == pytest.approx((0.4, 0.5, 0.6))


def test_it_is_written_again_under_its_own_names(tmp_path, state):
    encoder = read_checkpoint(folder(tmp_path, state)).encoder
    written = converters.export(encoder, "C-RADIO")
    for name, tensor in state.items():
        if name.startswith(BELOW):
            np.testing.assert_array_equal(written[name.removeprefix(BELOW)], tensor.numpy())


def test_tokens_that_are_read_elsewhere_and_a_file_without_their_numbers_are_refused_in_one_line(tmp_path, state):
    with pytest.raises(UserError, match=r"reads the tokens \[0, 2\]; those that are read must be the first ones"):
        read_checkpoint(folder(tmp_path, {**state, "radio_model.summary_idxs": torch.tensor([0, 2])}))
    (tmp_path / "model.safetensors").unlink()
    left = {name: tensor for name, tensor in state.items() if not name.endswith("summary_idxs")}
    with pytest.raises(UserError, match="lacks summary_idxs, which says how many of its 5 tokens in front are read"):
        read_checkpoint(folder(tmp_path, left))


def test_what_adaptors_and_a_rotation_of_patches_hold_is_left_out_and_said(tmp_path, state):
    more = {"radio_model.adaptors.sam.weight": torch.ones(2), "radio_model.feature_normalizer.tx": torch.eye(WIDTH)}
    notes = read_checkpoint(folder(tmp_path, {**state, **more})).notes
    assert "adaptors.sam.weight, feature_normalizer.tx" in notes[0]
