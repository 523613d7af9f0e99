"""SigLIP 2 NaFlex beside transformers' own model and processor, at several shapes and budgets, and in the names of other libraries."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from PIL import Image
from randomized import SMALL, save_random
from regcache_jax.converters import convert, export, read_checkpoint, write
from regcache_jax.converters.check import check, difference, run_ours
from regcache_jax.converters.reference import reference_pixels, run_reference
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)

import regcache_jax as rc
from regcache_jax.core.errors import UserError
from regcache_jax.encoders import catalog
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.encoders.sheets import fitted, sheet_of

VISION = {**SMALL, "patch_size": 8, "num_patches": 25}
TEXT = {**SMALL, "num_hidden_layers": 2, "vocab_size": 120, "max_position_embeddings": 9}
SHAPES = ((5, 5), (8, 5), (3, 13), (1, 40), (20, 2))
BUDGETS = (40, 64, 130)


def siglip2(**vision) -> transformers.Siglip2Model:
    """A small NaFlex."""
    return transformers.Siglip2Model(transformers.Siglip2Config(vision_config={**VISION, **vision}, text_config=TEXT))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder as Hugging Face has it."""
    folder = save_random(siglip2(), tmp_path_factory.mktemp("naflex"))
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=40).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
def test_all_blocks_features_and_logits_are_those_of_transformers_at_five_shapes(source, budget):
    encoder = read_checkpoint(str(source)).encoder
    rng = np.random.default_rng(budget)
    pictures = [rng.standard_normal((rows * 8, columns * 8, 3)).astype(np.float32) for rows, columns in SHAPES]
    sheets = np.stack([sheet_of(each, 8, budget) for each in pictures])
    ids = rng.integers(3, 118, (2, 9)).astype(np.int32)
    theirs, ours = run_reference(source, sheets, ids), run_ours(encoder, sheets, ids)
    rows = [difference(what, ours[what], theirs[what]) for what in theirs]
    assert {"image block 2", "image features", "text block 1", "text features", "logits"} <= set(theirs)
    for row in rows:
        assert row.typical < 1e-5 and row.worst < 1e-4, row


@pytest.mark.slow
@pytest.mark.parametrize("budget", [128, 256, 576, 1024])
def test_pixels_grids_and_masks_are_those_of_transformers_processor(tmp_path, budget):
    processor = Siglip2ImageProcessorPil(max_num_patches=budget)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    spec = catalog.get("google/siglip2-base-patch16-naflex").spec.preprocessing
    spec = type(spec)(**{**vars(spec), "max_patches": budget})
    for height, width in ((77, 53), (333, 1001), (16, 700), (1, 1), (640, 480)):
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        theirs = reference_pixels(tmp_path, Image.fromarray(pixels))
        np.testing.assert_allclose(preprocess(pixels, spec), theirs, rtol=0, atol=1e-6)


def test_sizes_are_found_as_transformers_finds_them():
    rng = np.random.default_rng(0)
    for height, width, budget in zip(*rng.integers(1, 3000, (2, 200)), rng.integers(1, 1100, 200), strict=True):
        asked = (int(height), int(width), 16, int(budget))
        assert fitted(*asked) == get_image_size_for_max_num_patches(*asked)


@pytest.mark.slow
def test_a_folder_is_converted_checked_and_given_another_budget(source, tmp_path):
    model = rc.load(convert(str(source), tmp_path / "model"))
    image = model.encoder.spec.image
    assert (image.max_patches, image.stored_grid, image.blocks.padded) == (40, 5, True)
    rows = check(str(source), model, num_images=3)
    assert {"pixels of a 77 x 53 picture", "logits"} <= {row.what for row in rows}
    assert max(row.worst for row in rows) < 1e-4
    wider = rc.load(convert(str(source), tmp_path / "wider", max_patches=64))
    assert (
        wider.preprocess(np.zeros((30, 50, 3), np.uint8)).shape == (64, 65, 3) == wider.encoder.spec.image.picture_shape
    )
    with pytest.raises(UserError, match="--max-patches says how many patches"):
        convert(str(source), tmp_path / "other", image_size=64)
    with pytest.raises(UserError, match=r"cannot express image's .*max_patches"):
        write(model, "huggingface", tmp_path / "back")


@pytest.mark.slow
def test_a_vision_tower_alone_is_read(tmp_path):
    config = transformers.Siglip2VisionConfig(**VISION)
    folder = save_random(transformers.Siglip2VisionModel(config), tmp_path / "tower")
    encoder = read_checkpoint(str(folder)).encoder
    assert encoder.spec.text is None and encoder.spec.image.max_patches == 256
    assert max(row.worst for row in check(str(folder), encoder)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", ["open_clip SigLIP 2 NaFlex", "timm SigLIP 2 NaFlex", "big_vision NaFlex", "big_vision NaFlex scanned"]
)
def test_every_layout_holds_the_same_encoder(source, tmp_path, layout):
    encoder = read_checkpoint(str(source)).encoder
    file = tmp_path / ("copy.npz" if layout.startswith("big_vision") else "copy.safetensors")
    if layout.startswith("timm"):  # of an image tower alone
        encoder = encoder.replace(params=encoder.params.replace(text=None, logit_scale=None, logit_bias=None))
    write(encoder, layout, file)
    read = read_checkpoint(str(file))
    assert read.format.name == layout and read.encoder.spec.image.max_patches == 256
    sheets = np.random.default_rng(0).standard_normal((1, 40, 65, 3)).astype(np.float32)
    sheets[:, :, -1] = 0
    sheets[:, :33, -1, 0], sheets[:, :33:11, -1, 1] = 1, 1
    spec = encoder.spec.image
    assert (
        read.encoder.spec.image.blocks.activation == "gelu_tanh"
        and read.encoder.spec.image.patch_size == spec.patch_size
    )
    for name, array in export(encoder, layout).items():
        np.testing.assert_array_equal(read.tensors[name].read(), array)
    if not layout.startswith("timm"):
        assert read.encoder.spec.text.vocab_size == 120
