"""CLIP ViT-B/16 (OpenAI) at W8A8, W6A6 and W4A4 on ImageNet.

Float accuracy to expect: 68.3 % zero-shot top-1 (open_clip's result table), or the quantised rows are marked invalid.
The paper has float 68.32, plain W8A8 34.01, RegCache W8A8 59.71.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from regcache_jax.configs import imagenet


def get_config() -> ConfigDict:
    """The ImageNet config for this encoder."""
    config = imagenet.get_config()
    config.model = "openai/clip-vit-base-patch16"
    config.expected_acc1 = 0.6834
    return config
