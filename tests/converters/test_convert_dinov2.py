from __future__ import annotations

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
import torch
from pairs import assert_same_tree, dinov2, read
from regcache_jax.converters.choices import at_image_size
from safetensors.torch import save_file

from regcache_jax import converters
from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import encode
from regcache_jax.models import folder as checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_from_hugging_face_meta_and_timm_is_one_encoder(tmp_path, registers, gated):
    network = dinov2(registers, gated)
    network.save_pretrained(tmp_path / "hub")
    wanted = read(tmp_path / "hub")
    (tmp_path / "memory").mkdir()
    network.config.save_pretrained(tmp_path / "memory")
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
        tmp_path / "memory/model.safetensors",
    )
    assert_same_tree(read(tmp_path / "memory").params, wanted.params)  # transformers 5's own names

    meta = layouts.meta_from_dinov2(network.state_dict(), 3)
    torch.save(meta, tmp_path / "dinov2_pretrain.pth")
    ours = read(tmp_path / "dinov2_pretrain.pth")
    assert_same_tree(ours.params, wanted.params)
    assert ours.spec.image.position_interpolation == ("bicubic_antialias" if registers else "bicubic_offset")

    save_file(layouts.timm_from_meta(meta), tmp_path / "timm.safetensors")
    ours = read(tmp_path / "timm.safetensors")
    assert ours.spec.image.position_interpolation == "bicubic_antialias"
    if not registers:
        assert_same_tree(ours.params, wanted.params)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 40, 40, 3)), jnp.float32)
    # Class token and its position are added up beforehand in timm's file: one rounding apart.
    ours, wanted = (encoder.replace(params=jax.tree.map(jnp.asarray, encoder.params)) for encoder in (ours, wanted))
    np.testing.assert_allclose(encode(ours, images).features, encode(wanted, images).features, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_folders_give_the_hidden_states_of_transformers_at_another_image_size(tmp_path, registers, gated):
    dinov2(registers, gated).save_pretrained(tmp_path / "source")
    encoder = read(tmp_path / "source")
    assert encoder.spec.image.trained_registers == registers and encoder.spec.image.blocks.gated_mlp == gated
    for pixels in (40, 24):  # the trained size, and a smaller one: positions are interpolated
        sized = encoder.replace(spec=at_image_size(encoder.spec, pixels))
        for row in converters.check(str(tmp_path / "source"), sized):
            assert row.typical <= 1e-5 and row.worst <= 1e-4, (pixels, row)


@pytest.mark.slow
def test_choices_replace_what_the_layout_says_and_stand_in_the_folder(tmp_path):
    dinov2(0, gated=False).save_pretrained(tmp_path / "source")
    folder = converters.convert(
        tmp_path / "source", tmp_path / "model", interpolation="bicubic_offset", activation="gelu_tanh", image_size=24
    )
    model = checkpoints.load(folder)
    image = model.encoder.spec.image
    assert (image.position_interpolation, image.blocks.activation, image.grid, image.stored_grid) == (
        "bicubic_offset",
        "gelu_tanh",
        3,
        5,
    )
    assert model.metadata["choices"] == {
        "activation": "gelu_tanh",
        "interpolation": "bicubic_offset",
        "filter": "bicubic",
    }
    with pytest.raises(UserError, match=r"interpolation must be one of bicubic, .*, got 'cubic'"):
        converters.convert(tmp_path / "source", tmp_path / "other", interpolation="cubic")
