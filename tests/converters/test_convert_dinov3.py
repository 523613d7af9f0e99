"""DINOv3 against transformers: every option, picture sizes of any shape, and Meta's and timm's names for the same weights."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from randomized import draw_parameters, save_random
from regcache_jax.converters.conversion import read_checkpoint

import regcache_jax as rc
from regcache_jax import converters
from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import encode
from regcache_jax.encoders.vision import image_features
from regcache_jax.models import folder as checkpoints

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
SMALL = {
    "hidden_size": 128, "intermediate_size": 144, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8,
    "image_size": 40, "num_register_tokens": 3,
}  # fmt: skip
KINDS = {
    "plain": {},
    "gated": {"use_gated_mlp": True, "hidden_act": "silu"},
    "no biases of queries and values": {"query_bias": False, "value_bias": False},
    "all biases, no registers, another base": {"key_bias": True, "num_register_tokens": 0, "rope_theta": 30.0},
}
SHAPES = {
    "square": (40, 40),
    "2 : 3": (32, 48),
    "upright": (56, 24),
    "large": (88, 88),
    "with pixels that fill no patch": (44, 50),
}


def network(**options):
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**{**SMALL, **options}))


@functools.cache
def theirs(kind, shape):
    """Pixels, and the hidden states and features that transformers has for them."""
    pixels = np.random.default_rng(0).standard_normal((2, *shape, 3)).astype(np.float32)
    with torch.no_grad():
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        output = draw_parameters(network(**KINDS[kind]))(images, output_hidden_states=True)
    return pixels, [hidden.numpy() for hidden in output.hidden_states], output.pooler_output.numpy()


def ours(encoder, pixels):
    collect = {"hidden": lambda trace: trace.hidden}
    run = jax.jit(lambda params, x: image_features(params, x, encoder.spec.image, collect=collect))
    output = run(jax.tree.map(jnp.asarray, encoder.params.image), jnp.asarray(pixels))
    return np.asarray(output.collected["hidden"]), np.asarray(output.features)


def assert_close(found, wanted):
    largest = np.abs(wanted).max()
    assert found.shape == wanted.shape
    assert np.linalg.norm(found - wanted) <= TYPICAL * np.linalg.norm(wanted)
    assert np.abs(found - wanted).max() <= WORST * largest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape"), [*((kind, "square") for kind in KINDS), *(("plain", shape) for shape in list(SHAPES)[1:])]
)
def test_blocks_and_features_are_those_of_transformers_at_every_shape_of_picture(tmp_path, kind, shape):
    encoder = read_checkpoint(str(save_random(network(**KINDS[kind]), tmp_path / "source"))).encoder
    pixels, hidden, features = theirs(kind, SHAPES[shape])
    found, pooled = ours(encoder, pixels)
    for block, wanted in enumerate(hidden[:-1]):
        assert_close(found[block], wanted)
    assert_close(pooled, features)


@pytest.mark.slow
def test_a_folder_converts_with_its_check_and_says_what_it_is(tmp_path, regcache):
    source = save_random(network(**KINDS["gated"]), tmp_path / "source")
    status, out, error = regcache("convert", source, "--out", tmp_path / "model", "--check")
    assert status == 0, error
    assert "image block 2" in out and "image features" in out
    spec = checkpoints.load(tmp_path / "model").encoder.spec
    assert (spec.family, spec.image.position_table, spec.image.blocks.qkv_bias) == ("dinov3", False, "qv")
    assert spec.image.num_tokens == 1 + 3 + 25 and not spec.normalize


@pytest.fixture(scope="module")
def read_from(tmp_path_factory):
    """Reads a kind of model in one of the layouts."""
    folder = tmp_path_factory.mktemp("layouts")

    def read(kind, layout, change=None):
        state = draw_parameters(network(**KINDS[kind])).state_dict()
        stored = layouts.meta_from_dinov3(state, 3)
        stored = layouts.timm_from_meta_dinov3(stored) if layout == "timm" else stored
        for name, tensor in (change or {}).items():
            stored[name] = tensor
        file = folder / f"{layout}.safetensors"
        safetensors.torch.save_file(stored, file)
        return read_checkpoint(str(file), name="dinov3_vits16").encoder

    return read


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS)[:3])
@pytest.mark.parametrize("layout", ["Meta", "timm"])
def test_the_names_of_meta_and_timm_give_the_same_numbers(tmp_path, read_from, kind, layout):
    wanted = read_checkpoint(str(save_random(network(**KINDS[kind]), tmp_path))).encoder
    found = read_from(kind, layout)
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    assert found.spec.image.blocks == wanted.spec.image.blocks
    assert found.spec.preprocessing.resize_size == 224


def test_transformers_may_write_either_name_of_a_block(tmp_path):
    source = save_random(network(), tmp_path / "one")
    stored = safetensors.torch.load_file(source / "model.safetensors")
    renamed = {
        name.removeprefix("model.")
        if name.startswith("model.")
        else name.replace("layer.", "model.layer.", 1)
        if name.startswith("layer.")
        else name: tensor
        for name, tensor in stored.items()
    }
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((source / "config.json").read_text())
    safetensors.torch.save_file(renamed, other / "model.safetensors")
    assert set(renamed) != set(stored)
    jax.tree.map(
        np.testing.assert_array_equal, *(read_checkpoint(str(folder)).encoder.params for folder in (source, other))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"query_bias": False}, "for all, for all but the key, or for none, got [False, False, True]"),
        ({"proj_bias": False}, "proj_bias is false, which no published DINOv3 has"),
        ({"key_bias": "no"}, "key_bias should be true or false, got 'no'"),
        ({"rope_theta": 0.5}, "the base of rotary positions must be above 1"),
        ({"num_attention_heads": 64}, "rotary positions need heads of a multiple of 4, got 2"),
        ({"use_gated_mlp": True}, "missing: 6 (layer.0.mlp.gate_proj.weight"),
        ({"patch_size": [8, 8]}, "patch_size"),
    ],
)
def test_a_configuration_that_its_tensors_do_not_bear_out_is_refused_in_one_line(tmp_path, changed, said):
    source = save_random(network(), tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(UserError) as error:
        read_checkpoint(str(source))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_meta_that_is_another_models_is_refused_in_one_line(read_from):
    wrong = {"rope_embed.periods": 10000 ** (torch.arange(16) / 16)}
    with pytest.raises(UserError, match=r"rope_embed.periods are not those of the base 100"):
        read_from("plain", "Meta", wrong)
    with pytest.raises(UserError, match=r"holds a bias where its family has none: 1 \(blocks.1.attn.qkv.bias\)"):
        read_from("plain", "Meta", {"blocks.1.attn.qkv.bias_mask": torch.ones(3 * 128)})


def test_a_file_without_configuration_needs_its_row_for_mean_and_deviation(tmp_path):
    stored = layouts.meta_from_dinov3(draw_parameters(network()).state_dict(), 3)
    safetensors.torch.save_file(stored, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="name its row of the catalog with --name"):
        read_checkpoint(str(tmp_path / "weights.safetensors"))
    satellite = read_checkpoint(
        str(tmp_path / "weights.safetensors"), name="dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth"
    )
    assert satellite.encoder.spec.preprocessing.mean == (0.430, 0.411, 0.296)


@pytest.mark.slow
def test_other_picture_sizes_are_only_other_places(tmp_path):
    source = save_random(network(), tmp_path / "source")
    model = checkpoints.load(converters.convert(source, tmp_path / "model", image_size=88))
    assert model.encoder.spec.image.grid == 11 and "interpolation" not in model.metadata["choices"]
    pixels, _, features = theirs("plain", SHAPES["large"])
    assert_close(np.asarray(encode(model.encoder, pixels).features), features)
    wide, _, features = theirs("plain", SHAPES["2 : 3"])
    assert_close(np.asarray(rc.encode_image(model.encoder, wide)), features)
    with pytest.raises(UserError, match=r"takes preprocessed pictures \[n, 88, 88, 3\], got \[2, 32, 47, 3\]"):
        rc.encode_image(model.encoder, wide[:, :, :-1])
    with pytest.raises(UserError, match="has no table of positions that could be resampled"):
        converters.convert(source, tmp_path / "other", interpolation="bicubic")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize("layout", ["Meta DINOv3", "timm DINOv3", "Hugging Face DINOv3"])
def test_what_is_written_has_the_names_of_the_layout_and_reads_back(tmp_path, kind, layout):
    network_ = draw_parameters(network(**KINDS[kind]))
    source = tmp_path / "source"
    network_.save_pretrained(source)
    read = read_checkpoint(str(source))
    written = converters.write(read.encoder, layout, tmp_path / "written.safetensors")
    state = network_.state_dict()
    meta = layouts.meta_from_dinov3(state, 3)
    names = {
        "Meta DINOv3": meta,
        "timm DINOv3": layouts.timm_from_meta_dinov3(meta),
        "Hugging Face DINOv3": safetensors.torch.load_file(source / "model.safetensors"),
    }[layout]
    own = ("mask_token", "periods", "bias_mask")  # what that library makes itself
    assert set(safetensors.torch.load_file(written)) == {
        name.removeprefix("model.") if layout.startswith("Hugging") else name
        for name in names
        if not name.endswith(own)
    }
    if not layout.startswith("Hugging"):
        again = read_checkpoint(str(written), name="dinov3_vits16").encoder
        jax.tree.map(np.testing.assert_array_equal, again.params, read.encoder.params)
