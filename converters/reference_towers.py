"""The originals of towers that transformers has no model of their own for: built alone, filled by name, and run on pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from regcache_jax.converters import intern_vit, sources, vlm

from regcache_jax.core.errors import UserError, shown

OPENGVLAB = "intern_vit_6b"
"""What OpenGVLab's folders of InternViT, large or small, call themselves."""


def blocks(hidden_states: Any) -> np.ndarray:
    """What enters each block; transformers adds what leaves the last one."""
    return np.stack([hidden.numpy() for hidden in hidden_states[:-1]])


def named_rows(towers: Mapping[str, tuple[np.ndarray, np.ndarray]], logits: np.ndarray | None) -> dict[str, np.ndarray]:
    """Features and stacked hidden states of the towers, and logits (of texts, or of classes) if there are any, each under the name of
    its row."""
    rows = {
        f"{tower} block {block}": hidden
        for tower, (_, by_block) in towers.items()
        for block, hidden in enumerate(by_block)
    }
    rows |= {f"{tower} features": features for tower, (features, _) in towers.items()}
    return rows if logits is None else rows | {"logits": logits}


def run_tower(kind: vlm.Vlm, folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """The same of a vision-language model's tower, which is built and filled by itself: hidden states up to the one that the language
    model takes, and what it takes of it."""
    import torch
    import transformers
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer
    from transformers.models.internvl.modeling_internvl import InternVLVisionModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

    source = sources.resolve(str(folder))
    held, tap = source.tensors(), kind.tap(source.config)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).vision_config
    classes = {
        "clip_vision_model": transformers.CLIPVisionModel,
        "siglip_vision_model": transformers.SiglipVisionModel,
        "idefics3_vision": Idefics3VisionTransformer,
        "smolvlm_vision": SmolVLMVisionTransformer,
        "internvl_vision": InternVLVisionModel,
        "qwen3_vl_vision": Qwen3VLVisionModel,
    }
    network = classes[config.model_type](config).float().eval()
    wanted = network.state_dict()
    below = "vision_model." if next(iter(wanted)).startswith("vision_model.") else ""  # before transformers 5
    arrays = {f"{below}{kind.own_name(name)}": tensor.read().astype(np.float32) for name, tensor in held.items()}
    missing = network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    lacking = [name for name in missing.missing_keys if not name.startswith(("merger.", "deepstack_merger_list."))]
    if lacking:
        raise UserError(f"{folder} lacks {shown(', '.join(lacking[:5]))} of its vision tower")
    if config.model_type == "qwen3_vl_vision":
        return run_qwen(network, images)
    with torch.no_grad():
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        output = network(pixel_values=pixels, output_hidden_states=True)
    count = config.num_hidden_layers + tap.block + 1
    taken = output.last_hidden_state if tap.normed else output.hidden_states[count]
    taken = taken[:, 1:] if config.model_type in ("clip_vision_model", "internvl_vision") else taken
    return named_rows({"image": (taken.numpy(), blocks(output.hidden_states[: count + 1]))}, None)


def run_qwen(network: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """The same of Qwen3-VL's, which takes patches square by square of those that are merged, as many frames of each."""
    import torch

    side, merged, frames = (
        getattr(network.config, name) for name in ("patch_size", "spatial_merge_size", "temporal_patch_size")
    )
    count, rows, columns = len(images), images.shape[1] // side, images.shape[2] // side
    places = np.arange(rows * columns).reshape(rows // merged, merged, columns // merged, merged).swapaxes(1, 2)
    order = places.reshape(-1)
    patches = images.reshape(count, rows, side, columns, side, 3).transpose(0, 1, 3, 5, 2, 4)
    patches = patches.reshape(count, rows * columns, 3, 1, side, side).repeat(frames, axis=3)[:, order]
    with torch.no_grad():
        output = network(
            torch.from_numpy(patches.reshape(count * rows * columns, -1)),
            grid_thw=torch.tensor([[1, rows, columns]] * count),
            output_hidden_states=True,
        )
    states = [hidden.reshape(count, rows * columns, -1)[:, np.argsort(order)] for hidden in output.hidden_states]
    last = output.last_hidden_state.reshape(count, rows * columns, -1)[:, np.argsort(order)]
    return named_rows(
        {"image": (last.numpy(), np.stack([each.numpy() for each in states[: network.config.depth]]))}, None
    )


def run_internvit(folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """The same of OpenGVLab's InternViT, whose network transformers has under other names."""
    import torch
    from transformers.models.internvl.modeling_internvl import InternVLVisionConfig, InternVLVisionModel

    source = sources.resolve(str(folder))
    told = source.config
    state: dict[str, Any] = {}
    for name, tensor in source.tensors().items():
        array = torch.from_numpy(tensor.read().astype(np.float32))
        if ".attn.qkv." in name:
            apart = (name.replace(".attn.qkv.", f".attention.{each}_proj.") for each in "qkv")
            state |= dict(zip(map(intern_vit.in_transformers, apart), array.chunk(3), strict=True))
        else:
            state[intern_vit.in_transformers(name)] = array
    kept = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "layer_norm_eps",
    )
    config = InternVLVisionConfig(
        **{key: told[key] for key in kept if key in told},
        image_size=[told.get("image_size", 448)] * 2,
        patch_size=[told.get("patch_size", 14)] * 2,
        attention_bias=any(name.endswith(".q_proj.bias") for name in state),
        use_qk_norm=any(".q_norm." in name for name in state),
        norm_type="layer_norm" if any(name.endswith(".layernorm_before.bias") for name in state) else "rms_norm",
    )
    network = InternVLVisionModel(config).float().eval()
    network.load_state_dict(state)
    with torch.no_grad():
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        output = network(pixel_values=pixels, output_hidden_states=True)
    return named_rows({"image": (output.last_hidden_state[:, 1:].numpy(), blocks(output.hidden_states))}, None)
