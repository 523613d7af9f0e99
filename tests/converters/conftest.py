"""What tests of conversion share: a folder to spoil, and random encoders beside the states they were read from."""

from __future__ import annotations

import shutil

import layouts
import pytest
from pairs import IMAGE, WIDE, read
from randomized import CLIP_TEXT, SIGLIP_TEXT, SMALL_IMAGE, clip, save_random, siglip


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A sound CLIP folder, drawn and written once."""
    return save_random(clip(), tmp_path_factory.mktemp("sound") / "source")


@pytest.fixture
def folder(sound, tmp_path):
    """Its copy, to be spoilt."""
    return shutil.copytree(sound, tmp_path / "source")


@pytest.fixture(scope="session")
def clip_pair(tmp_path_factory):
    """A random CLIP, its encoder, and its state under open_clip's names."""
    network = clip({**CLIP_TEXT, **WIDE}, IMAGE)
    folder = save_random(network, tmp_path_factory.mktemp("clip"))
    return read(folder), network.state_dict(), layouts.open_clip_from_clip(network.state_dict(), 3, 2)


@pytest.fixture(scope="session")
def siglip_pair(tmp_path_factory):
    """A random SigLIP with two heads of 24, its encoder and its state."""
    network = siglip({**SIGLIP_TEXT, "num_attention_heads": 4}, SMALL_IMAGE)
    folder = save_random(network, tmp_path_factory.mktemp("siglip"))
    return read(folder), network.state_dict()
