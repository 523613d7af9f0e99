"""SigLIP ViT-B/16, 224 px, at W8A8, W6A6 and W4A4 on ImageNet.

Float accuracy to expect: 76.0 % zero-shot top-1 (open_clip's result table), or the quantised rows are marked invalid.
The paper has float 76.05, plain W8A8 69.71, RegCache W8A8 74.38.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from regcache_jax.configs import imagenet


def get_config() -> ConfigDict:
    """The ImageNet config for this encoder."""
    config = imagenet.get_config()
    config.model = "google/siglip-base-patch16-224"
    config.expected_acc1 = 0.7604
    return config
