"""A checkpoint folder that tests of conversion spoil."""

from __future__ import annotations

import pytest
from randomized import clip, save_random


@pytest.fixture
def folder(tmp_path):
    """A sound CLIP folder, to be spoilt."""
    return save_random(clip(), tmp_path / "source")
