from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from randomized import CLIP_TEXT, SIGLIP_TEXT, SMALL_IMAGE, clip, save_random, siglip
from regcache_jax.converters.check import SENTENCES, difference, random_inputs, run_ours
from regcache_jax.converters.conversion import read_checkpoint
from regcache_jax.converters.reference import run_reference
from words import write_clip_files

from regcache_jax import converters
from regcache_jax.encoders import catalog
from regcache_jax.encoders.encoder import encode_image
from regcache_jax.models import folder as checkpoints

# float32 products of the same numbers added up in another order: rounding grows with depth, not with the mistake sought.
TYPICAL, WORST = 1e-5, 1e-4


def assert_equal_by_block(source, model, **options):
    for row in converters.check(str(source), model, **options):
        assert row.typical <= TYPICAL and row.worst <= WORST, row


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_a_clip_folder_gives_the_hidden_states_and_features_of_transformers(tmp_path, activation):
    source = save_random(clip(hidden_act=activation), tmp_path / "clip")
    model = checkpoints.load(converters.convert(source, tmp_path / "model"))
    assert_equal_by_block(source, model, num_images=2)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_a_siglip_folder_gives_the_hidden_states_and_features_of_transformers(tmp_path, activation):
    source = save_random(siglip(hidden_act=activation), tmp_path / "siglip")
    model = checkpoints.load(converters.convert(source, tmp_path / "model"))
    assert_equal_by_block(source, model, num_images=2)


def whole_folder(kind, folder):
    """A checkpoint with its processor and, a CLIP, its words."""
    sized = {"size": {"shortest_edge": 46}, "crop_size": {"height": 40, "width": 40}}
    if kind == "clip":
        network = clip({**CLIP_TEXT, "vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599})
        processor = transformers.CLIPImageProcessorPil(**sized)
    elif kind == "siglip":
        network, processor = siglip(), transformers.SiglipImageProcessorPil(size={"height": 40, "width": 40})
    else:
        classes = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
        config = getattr(transformers, f"{classes[kind]}Config")(**SMALL_IMAGE)
        network, processor = (
            getattr(transformers, f"{classes[kind]}Model")(config),
            transformers.BitImageProcessorPil(**sized),
        )
    source = save_random(network, folder)
    processor.save_pretrained(source)
    if kind == "clip":
        write_clip_files(source)
        transformers.CLIPTokenizer.from_pretrained(source).save_pretrained(source)
    return source


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "dinov2_with_registers"])
def test_every_family_is_its_original_in_features_scores_pixels_and_words(tmp_path, kind):
    source = whole_folder(kind, tmp_path / "source")
    model = checkpoints.load(converters.convert(source, tmp_path / "model"))
    rows = {row.what: row for row in converters.check(str(source), model)}
    assert all(row.typical <= TYPICAL and row.worst <= WORST for row in rows.values())
    assert {"image features", "pixels of a 77 x 53 picture"} <= set(rows)
    assert {"text features", "logits"} <= set(rows) or "siglip" != kind != "clip"
    assert (f"ids of {len(SENTENCES)} sentences" in rows) == (kind == "clip")


@pytest.mark.slow
def test_a_conversion_that_is_not_its_original_is_not_kept(tmp_path, regcache):
    source = whole_folder("clip", tmp_path / "source")
    convert = ("convert", source, "--out", tmp_path / "model", "--check")
    status, out, error = regcache(*convert, "--activation", "gelu")
    assert status == 1 and "image block 1 differ by" in error and "is removed" in error
    assert "logits" in out and not (tmp_path / "model").exists()
    processor = json.loads((source / "preprocessor_config.json").read_text())
    assert regcache(*convert, "--filter", "bilinear")[2].count("pixels of a 77 x 53 picture differ by") == 1
    (source / "preprocessor_config.json").write_text(json.dumps(processor))
    status, out, _ = regcache(*convert)
    assert status == 0 and out.strip().endswith(f"{source} -> {tmp_path / 'model'}")


@pytest.mark.slow
@pytest.mark.parametrize("old", [True, False])
def test_the_end_of_text_is_found_as_old_and_new_configurations_say(tmp_path, old):
    source = save_random(clip({**CLIP_TEXT, "eos_token_id": 2 if old else 60}), tmp_path / "clip")
    encoder = checkpoints.load(converters.convert(source, tmp_path / "model")).encoder
    assert encoder.spec.text.pooling == ("argmax" if old else "eot")
    ids = np.random.default_rng(0).integers(61, 119, (2, 11)).astype(np.int32)
    ids[0, 4] = ids[1, 9] = 119 if old else 60
    images, _ = random_inputs(encoder, 1)
    theirs, ours = run_reference(source, images, ids), run_ours(encoder, images, ids)
    np.testing.assert_allclose(ours["text features"], theirs["text features"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL_IMAGE)),
        lambda: transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**SMALL_IMAGE, projection_dim=24)
        ),
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL_IMAGE)),
    ],
    ids=["clip", "clip with projection", "siglip"],
)
def test_a_vision_tower_alone_converts_too(tmp_path, network):
    source = save_random(network(), tmp_path / "tower")
    model = checkpoints.load(converters.convert(source, tmp_path / "model"))
    assert model.encoder.spec.text is None
    assert_equal_by_block(source, model)


@pytest.mark.slow
def test_shards_give_the_same_parameters_as_one_file(tmp_path):
    network = siglip()
    one = save_random(network, tmp_path / "one")
    many = save_random(network, tmp_path / "many", max_shard_size="20KB")
    assert len(list(many.glob("*.safetensors"))) > 3
    trees = [
        checkpoints.load(converters.convert(folder, tmp_path / f"m-{folder.name}")).encoder.params
        for folder in (one, many)
    ]
    jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.slow
def test_a_bin_file_gives_the_same_parameters_as_safetensors(tmp_path):
    network = clip()
    one = save_random(network, tmp_path / "one")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((one / "config.json").read_text())
    torch.save(network.state_dict(), other / "pytorch_model.bin")
    trees = [
        checkpoints.load(converters.convert(folder, tmp_path / f"m-{folder.name}")).encoder.params
        for folder in (one, other)
    ]
    jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.slow
@pytest.mark.parametrize("make", [clip, siglip])
def test_bfloat16_storage_keeps_the_direction_of_features(tmp_path, make):
    source = save_random(make(), tmp_path / "source")
    exact = checkpoints.load(converters.convert(source, tmp_path / "exact")).encoder
    short = checkpoints.load(converters.convert(source, tmp_path / "short", dtype="bfloat16")).encoder
    assert short.dtype == jnp.bfloat16 and short.params.logit_scale.dtype == jnp.float32
    images, _ = random_inputs(exact, 2)
    cosine = jnp.sum(encode_image(exact, jnp.asarray(images)) * encode_image(short, jnp.asarray(images)), axis=-1)
    assert float(cosine.min()) > 0.999  # eight bits of mantissa: about 0.4 % a number, averaged over the width


@pytest.mark.slow
def test_the_folders_own_preprocessing_and_configuration_are_followed(tmp_path):
    source = save_random(
        siglip({**SIGLIP_TEXT, "projection_size": 20}, {**SMALL_IMAGE, "hidden_size": 20, "num_attention_heads": 2}),
        tmp_path / "s",
    )
    (source / "preprocessor_config.json").write_text(
        json.dumps(
            {"size": {"height": 40, "width": 40}, "resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}
        )
    )
    model = checkpoints.load(converters.convert(source, tmp_path / "model"))
    preprocessing = model.encoder.spec.preprocessing
    assert (preprocessing.filter, preprocessing.resize, preprocessing.mean) == ("bilinear", "squash", (0.1, 0.2, 0.3))
    assert model.metadata["choices"]["filter"] == "bilinear"
    assert_equal_by_block(source, model)


DEEP = {"num_hidden_layers": 4}
"""Blocks of one table after the other: four tell what twelve would. How many an encoder has, test_catalog.py counts."""


def clip_b16():
    vision = transformers.CLIPVisionConfig(patch_size=16, **DEEP).to_dict()
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=DEEP))


def siglip_b(**vision):
    """Its table of words is looked up and nothing else: a tenth of it is drawn, written and read in no time."""
    text = {"vocab_size": 3_200, **DEEP}
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config={**vision, **DEEP}, text_config=text))


def dinov2_b14():
    return transformers.Dinov2Model(transformers.Dinov2Config(image_size=518, patch_size=14, **DEEP))


def dinov2_b14_with_registers():
    config = transformers.Dinov2WithRegistersConfig(image_size=518, patch_size=14, **DEEP)
    return transformers.Dinov2WithRegistersModel(config)


def dinov3_b16():
    options = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_register_tokens": 4}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**options, **DEEP))


REAL_WIDTHS = {
    "openai/clip-vit-base-patch16": clip_b16,
    "google/siglip-base-patch16-224": siglip_b,
    "google/siglip2-base-patch32-256": lambda: siglip_b(image_size=256, patch_size=32),
    "facebook/dinov2-base": dinov2_b14,
    "facebook/dinov2-with-registers-base": dinov2_b14_with_registers,
    "facebook/dinov3-vitb16-pretrain-lvd1689m": dinov3_b16,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_WIDTHS)
def test_at_the_real_widths_every_block_is_that_of_transformers_and_bfloat16_keeps_the_direction(tmp_path, name):
    with torch.device("meta"):  # its parameters are drawn once, by us
        network = REAL_WIDTHS[name]()
    source = save_random(network.to_empty(device="cpu"), tmp_path / "source")
    encoder = read_checkpoint(str(source))[0]
    wanted, found = catalog.get(name).spec, encoder.spec.image
    own = dataclasses.replace(wanted.image.blocks, num_blocks=4)
    # Meta's interpolation of positions stands in the catalog, where transformers has its own
    assert found == dataclasses.replace(wanted.image, blocks=own, position_interpolation=found.position_interpolation)
    images, ids = random_inputs(encoder, 1)
    ours, theirs = run_ours(encoder, images, ids), run_reference(source, images, ids)
    assert set(ours) == set(theirs) and len(ours) == (11 if wanted.text else 5)
    for what in theirs:
        row = difference(what, ours[what], theirs[what])
        assert row.typical <= TYPICAL and row.worst <= WORST, row
    short = run_ours(encoder.astype(jnp.bfloat16), images, ids)
    for what in [what for what in ours if what.endswith("features")]:
        one, other = short[what].astype(np.float32), ours[what]
        cosine = np.sum(one * other, axis=-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
        assert cosine.min() > 0.999, what
