"""Preprocessing inside a program, against the host's, pixel by pixel."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import CLIP_MEAN, CLIP_STD, Preprocessing
from regcache_jax.encoders import preprocess_inside as inside
from regcache_jax.encoders.preprocess import preprocess


@pytest.mark.slow
@pytest.mark.parametrize("size", [(40, 31), (90, 30), (20, 20), (13, 200)])
@pytest.mark.parametrize(
    ("how", "filter"), [("shortest", "bicubic"), ("squash", "bilinear"), ("squash", "bilinear_tf")]
)
def test_the_program_gives_the_hosts_pixels_in_whichever_order_pillow_takes_its_steps(size, how, filter):
    spec = Preprocessing(16, how, filter, 18, CLIP_MEAN, CLIP_STD)
    pictures = np.random.default_rng(1).integers(0, 256, (3, *size, 3), np.uint8)
    found = jax.jit(inside.preprocess_inside(spec, *size))(pictures)
    wanted = np.stack([preprocess(picture, spec) for picture in pictures])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=inside.TOLERANCE)


def test_sizes_at_which_it_would_not_be_exact_are_refused(monkeypatch):
    spec = Preprocessing(2, "squash", "lanczos", 2, CLIP_MEAN, CLIP_STD)
    with pytest.raises(UserError, match="9000 pixels cannot be resized to 2 inside a program"):
        inside.preprocess_inside(spec, 2, 9000)
    monkeypatch.setattr(inside, "TOLERANCE", 1e-9)
    with pytest.raises(UserError, match="pictures of 5x7 cannot be preprocessed inside a program to within 1e-09"):
        inside.preprocess_inside(spec, 5, 7)
