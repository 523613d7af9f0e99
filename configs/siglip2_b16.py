"""SigLIP 2 ViT-B/16, 224 px, at W8A8, W6A6 and W4A4 on ImageNet.

Float accuracy to expect: 78.2 % zero-shot top-1 (big_vision's README), or the quantised rows are marked invalid.
The paper has float 78.47, plain W8A8 26.04, RegCache W8A8 72.35.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from regcache_jax.configs import imagenet


def get_config() -> ConfigDict:
    """The ImageNet config for this encoder."""
    config = imagenet.get_config()
    config.model = "google/siglip2-base-patch16-224"
    config.expected_acc1 = 0.782
    return config
