"""OpenCLIP ViT-B/16 (LAION-2B) at W8A8, W6A6 and W4A4 on ImageNet.

Float accuracy to expect: 70.2 % zero-shot top-1 (open_clip's result table), or the quantised rows are marked invalid.
The paper has float 70.22 and plain W4A4 0.10.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from regcache_jax.configs import imagenet


def get_config() -> ConfigDict:
    """The ImageNet config for this encoder."""
    config = imagenet.get_config()
    config.model = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    config.expected_acc1 = 0.7023
    return config
