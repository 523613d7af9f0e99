from __future__ import annotations

import json

import jax
import layouts
import numpy as np
import pytest
import torch
from pairs import IMAGE, WIDE, assert_same_tree, read
from randomized import CLIP_TEXT, SIGLIP_TEXT, clip, draw_parameters, save_random, siglip
from safetensors.torch import save_file

from regcache_jax.core.errors import UserError
from regcache_jax.core.sites import Parameters


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_open_clip_folder_gives_the_same_clip(tmp_path, clip_pair, kind):
    encoder, _, state = clip_pair
    if kind == "safetensors":
        save_file(state, tmp_path / "open_clip_model.safetensors")
    else:
        torch.save(
            {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
            tmp_path / "open_clip_pytorch_model.bin",
        )
    config = {
        "model_cfg": {"quick_gelu": True, "vision_cfg": {}, "text_cfg": {"heads": 1}},
        "preprocess_cfg": {"mean": [0.5] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    ours = read(tmp_path)
    assert_same_tree(ours.params, encoder.params)
    assert ours.spec.image == encoder.spec.image
    assert ours.spec.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_an_open_clip_file_without_configuration_asks_for_its_name(tmp_path, clip_pair):
    save_file(clip_pair[2], tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="which GELU it was trained with; name its row"):
        read(tmp_path / "weights.safetensors")


class Tower(torch.nn.Module):
    """A module tree with any names, as TorchScript archives have it."""

    def __init__(self, state):
        super().__init__()
        self.input_resolution = torch.nn.Parameter(torch.tensor(40.0))
        for name, tensor in state.items():
            *parents, leaf = name.split(".")
            node = self
            for parent in parents:
                if parent not in node._modules:
                    node.add_module(parent, torch.nn.Module())
                node = node._modules[parent]
            node.register_parameter(leaf, torch.nn.Parameter(tensor))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.logit_scale


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # deprecated, as what made those files
@pytest.mark.parametrize("half", [False, True])  # OpenAI's own are in half precision
def test_openais_torchscript_archive_is_read_without_running_it(tmp_path, clip_pair, half):
    encoder, _, state = clip_pair
    state = {name: tensor.half() if half and tensor.ndim > 1 else tensor for name, tensor in state.items()}
    torch.jit.trace(Tower(state), torch.zeros(1)).save(str(tmp_path / "ViT.pt"))
    ours = read(tmp_path / "ViT.pt")
    rounded = jax.tree.map(lambda array: array.astype(np.float16).astype(np.float32), encoder.params)
    kernel = ours.params.image.blocks.mlp.fc1.kernel
    wanted = (rounded if half else encoder.params).image.blocks.mlp.fc1.kernel
    np.testing.assert_array_equal(kernel, wanted, strict=True)
    if not half:
        assert_same_tree(ours.params, encoder.params)
    assert ours.spec.image == encoder.spec.image and ours.spec.text.pooling == "argmax"


@pytest.mark.slow
def test_open_clip_and_timm_files_give_the_same_siglip(tmp_path):
    network = draw_parameters(siglip({**SIGLIP_TEXT, **WIDE}, IMAGE))
    network.save_pretrained(tmp_path / "source")
    encoder = read(tmp_path / "source")
    for name, state in (
        ("open_clip", layouts.open_clip_from_siglip(network.state_dict(), 3, 2)),
        ("timm", layouts.timm_from_siglip(network.state_dict(), 3)),
    ):
        save_file(state, tmp_path / f"{name}.safetensors")
        ours = read(tmp_path / f"{name}.safetensors")
        assert_same_tree(ours.params.image, encoder.params.image)
        assert ours.spec.image.blocks.activation == "gelu"  # timm's exact GELU for all but a few sizes
    assert_same_tree(read(tmp_path / "open_clip.safetensors").params, encoder.params)


@pytest.mark.slow
def test_a_timm_file_gives_the_same_image_tower_of_clip(tmp_path, clip_pair):
    network = clip({**CLIP_TEXT, **WIDE}, IMAGE, projection=512)  # as many as the row has
    encoder = read(save_random(network, tmp_path / "clip"))
    save_file(layouts.timm_from_clip(network.state_dict(), 3), tmp_path / "timm.safetensors")
    ours = read(tmp_path / "timm.safetensors", name="openai/clip-vit-base-patch16")
    assert_same_tree(ours.params, Parameters(encoder.params.image))
    assert ours.spec.image == encoder.spec.image and ours.spec.text is None
    with pytest.raises(UserError, match="which GELU it was trained with; name its row"):
        read(tmp_path / "timm.safetensors")
    save_file(layouts.timm_from_clip(clip_pair[1], 3), tmp_path / "classes.safetensors")
    with pytest.raises(UserError, match=r"head\.weight has 24 outputs, .* projects to 512 .* this is a classifier"):
        read(tmp_path / "classes.safetensors", name="openai/clip-vit-base-patch16")
