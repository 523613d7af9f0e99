"""A checkpoint folder that tests of conversion spoil."""

from __future__ import annotations

import shutil

import pytest
from randomized import clip, save_random


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A sound CLIP folder, drawn and written once."""
    return save_random(clip(), tmp_path_factory.mktemp("sound") / "source")


@pytest.fixture
def folder(sound, tmp_path):
    """Its copy, to be spoilt."""
    return shutil.copytree(sound, tmp_path / "source")
