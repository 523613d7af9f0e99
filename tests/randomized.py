"""Randomly drawn checkpoints for converter tests, in PyTorch: every parameter is drawn, so that nothing hides at its default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

SMALL = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL_IMAGE = {**SMALL, "image_size": 40, "patch_size": 8}
CLIP_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 120,
    "max_position_embeddings": 11,
    "bos_token_id": 118,
    "eos_token_id": 119,
}
SIGLIP_TEXT = {**SMALL, "num_hidden_layers": 2, "vocab_size": 120, "max_position_embeddings": 9}


def draw_parameters(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws every parameter: matrices of the size that keeps activations ordinary, all else (biases, norms, LayerScale,
    temperature) around its usual value but never on it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = name.endswith(("lambda1", "weight")) and parameter.ndim == 1
            if parameter.ndim >= 2 and "embed" not in name and "token" not in name and "probe" not in name:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * fan_in**-0.5)
            elif name == "logit_scale":
                parameter.copy_(2.0 + 0.1 * noise)
            else:
                parameter.copy_(0.3 * noise + (1.0 if around_one else 0.0))
    return network.eval()


def save_random(network: torch.nn.Module, folder: Path, **options: Any) -> Path:
    """Draws a model's parameters and writes it as transformers does."""
    draw_parameters(network).save_pretrained(folder, **options)
    return folder


def clip(
    text: dict = CLIP_TEXT, image: dict = SMALL_IMAGE, projection: int = 24, **options: Any
) -> transformers.CLIPModel:
    """A small CLIP with its own widths for image, text and output."""
    config = transformers.CLIPConfig(
        vision_config={"hidden_act": "quick_gelu", **image, **options},
        text_config={"hidden_act": "quick_gelu", **text, **options},
        projection_dim=projection,
    )
    return transformers.CLIPModel(config)


def siglip(text: dict = SIGLIP_TEXT, image: dict = SMALL_IMAGE, **options: Any) -> transformers.SiglipModel:
    """A small SigLIP."""
    return transformers.SiglipModel(
        transformers.SiglipConfig(vision_config={**image, **options}, text_config={**text, **options})
    )
