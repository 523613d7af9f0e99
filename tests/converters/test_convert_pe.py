"""Meta's Perception Encoder against its description in PyTorch: both kinds of positions, two sizes of pictures, three layouts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import perception
import pytest
import safetensors.torch
import torch
from regcache_jax.converters.check import difference, run_ours
from regcache_jax.converters.choices import at_image_size
from regcache_jax.converters.conversion import read_checkpoint

import regcache_jax as rc
from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import Tap
from regcache_jax.encoders import catalog
from regcache_jax.encoders.taps import encode_patches

TYPICAL, WORST = 1e-5, 1e-4  # float32 products of the same numbers added up in another order
KINDS = {
    "Core": (True, True, False),
    "Core without class token": (False, True, False),
    "Spatial": (True, False, False),
    "Lang without class token": (False, False, True),
}
"""Whether there is a class token, a head, LayerScale."""


@functools.cache
def state_of(kind):
    return perception.drawn(*KINDS[kind])


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Reads tensors from a file of their own."""
    folder = tmp_path_factory.mktemp("files")

    def read(tensors, name="PE.pt", **options):
        file = folder / name
        (torch.save if file.suffix == ".pt" else safetensors.torch.save_file)(dict(tensors), file)
        return read_checkpoint(str(file), **options)

    return read


def assert_close(found, wanted):
    row = difference("values", np.asarray(found), wanted.numpy())
    assert row.typical <= TYPICAL and row.worst <= WORST, row


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [40, 72])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_features_texts_and_logits_are_those_of_the_description_at_two_sizes(read, kind, pixels):
    state = state_of(kind)
    encoder = read(state).encoder
    encoder = encoder.replace(spec=at_image_size(encoder.spec, pixels)) if pixels != 40 else encoder
    images = np.random.default_rng(0).standard_normal((2, pixels, pixels, 3)).astype(np.float32)
    ids = np.random.default_rng(1).integers(1, 118, (3, perception.CONTEXT)).astype(np.int32)
    ids[:, 5] = perception.VOCABULARY - 1
    core = "Core" in kind
    ours = run_ours(encoder, images, ids if core else None)
    entering, taken = perception.image(state, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for block, hidden in enumerate(entering):
        assert_close(ours[f"image block {block}"], hidden)
    protected = encoder.spec.image.num_protected
    assert_close(ours["image features"], taken if core else taken[:, protected:])
    if core:
        texts = perception.text(state, torch.from_numpy(ids).long())
        assert_close(ours["text features"], texts)
        cosines = torch.nn.functional.normalize(taken) @ torch.nn.functional.normalize(texts).T
        assert_close(ours["logits"], state["logit_scale"].exp() * cosines)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_names_of_timm_and_open_clip_give_the_same_numbers(read, kind):
    state = state_of(kind)
    wanted = read(state).encoder
    timm = layouts.timm_from_pe(state)
    found = read(timm, "timm.safetensors").encoder
    jax.tree.map(np.testing.assert_array_equal, found.params.image, wanted.params.image)
    assert found.spec.image == wanted.spec.image
    if "Core" in kind:
        both = read(layouts.open_clip_from_pe(state), "open_clip.safetensors").encoder
        jax.tree.map(np.testing.assert_array_equal, both.params, wanted.params)
        assert (both.spec.image, both.spec.text) == (wanted.spec.image, wanted.spec.text)
        biased = read(timm | {"head.bias": torch.zeros(perception.OUT)}, "timm.safetensors").encoder
        assert biased.spec.image.projection_bias  # timm's own conversion writes one, of zeros


def test_a_tower_may_stand_alone_or_in_a_trainers_dictionary(read):
    state = state_of("Spatial")
    wanted = read(state).encoder.params
    alone = {name.removeprefix("visual."): tensor for name, tensor in state.items()}
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in alone.items()}}
    for stored in (alone, wrapped):
        jax.tree.map(np.testing.assert_array_equal, read(stored).encoder.params, wanted)


def test_a_pe_core_is_told_from_a_clip_and_what_is_missing_is_said(read):
    state = dict(state_of("Core"))
    assert read(state).format.name == "Meta PE Core"
    del state["visual.attn_pool.attn.out_proj.bias"]
    with pytest.raises(UserError, match=r"missing: 1 \(visual.attn_pool.attn.out_proj.bias\)"):
        read(state)


def test_pictures_and_words_are_as_meta_prepares_them(read):
    spec = read(state_of("Core")).encoder.spec
    pictures = spec.preprocessing
    assert (pictures.resize, pictures.filter, pictures.mean) == ("squash", "bilinear", (0.5, 0.5, 0.5))
    assert (spec.tokenization.kind, spec.tokenization.context_length, spec.text.pooling) == ("clip", 9, "argmax")
    told = catalog.get("PE-Core-L14-336.pt").spec
    assert (told.image.blocks.rotary, told.image.head_heads) == (spec.image.blocks.rotary, spec.image.head_heads)
    assert catalog.get("facebook/PE-Core-G14-448").spec.image.blocks.rotary.offset == 0


@pytest.mark.slow
def test_the_patches_of_any_block_of_a_spatial_are_read_with_its_class_token(read):
    encoder = jax.tree.map(jnp.asarray, read(state_of("Spatial")).encoder)
    images = np.random.default_rng(0).standard_normal((1, 40, 40, 3)).astype(np.float32)
    entering, _ = perception.image(state_of("Spatial"), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    found = encode_patches(encoder, images, tap=Tap(1, normed=False, class_token=True))
    assert_close(found, entering[2])
    with pytest.raises(UserError, match="has no final norm"):
        rc.encode_patches(encoder, images, tap=Tap(1))
