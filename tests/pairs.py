"""What tests of layouts share: random networks whose heads are 64 wide, a file read, and two trees held to one another."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import torch
import transformers
from randomized import SMALL_IMAGE, draw_parameters
from regcache_jax.converters.conversion import read_checkpoint

from regcache_jax.encoders.encoder import Encoder

# Sizes whose heads are 64 wide, as layouts without a configuration assume.
WIDE = {"hidden_size": 64, "num_attention_heads": 1}
IMAGE = {**SMALL_IMAGE, **WIDE}


def assert_same_tree(ours: Any, wanted: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)


def read(path: object, **options: Any) -> Encoder:
    return read_checkpoint(str(path), **options)[0]


def dinov2(registers: int, gated: bool) -> torch.nn.Module:
    options = {**IMAGE, "mlp_ratio": 2, "use_swiglu_ffn": gated}
    options.pop("intermediate_size")
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
        return draw_parameters(transformers.Dinov2WithRegistersModel(config))
    return draw_parameters(transformers.Dinov2Model(transformers.Dinov2Config(**options)))
