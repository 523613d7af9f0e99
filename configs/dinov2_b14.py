"""DINOv2 ViT-B/14 at W8A8, W6A6 and W4A4 on ImageNet, by k-NN: there is no text tower.

Float accuracy to expect: 82.1 % top-1 (Meta's README: k = 20, temperature 0.07, all training pictures vote), or the quantised rows
are marked invalid. The paper's float figure, 83.26, is neither the published k-NN nor the linear one.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from regcache_jax.configs import imagenet


def get_config() -> ConfigDict:
    """The ImageNet config for this encoder."""
    config = imagenet.get_config()
    config.model = "facebook/dinov2-base"
    config.expected_acc1 = 0.821
    config.task = "knn"
    return config
