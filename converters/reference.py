"""The original, run by transformers in PyTorch: what a conversion is compared with."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from regcache_jax.converters import reference_towers, sources, vlm
from regcache_jax.converters.reference_towers import blocks, named_rows

from regcache_jax.core.errors import UserError, installing, shown
from regcache_jax.encoders.sheets import sheet_of
from regcache_jax.files.bounded import read_json

# The classes of transformers that run a kind of checkpoint: the one its config.json names if it is here, else the first. A
# checkpoint never chooses what is run.
ARCHITECTURES = {
    "clip": ("CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel"),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "metaclip_2": ("MetaClip2Model", "MetaClip2VisionModelWithProjection", "MetaClip2VisionModel"),
    "metaclip_2_vision_model": ("MetaClip2VisionModel", "MetaClip2VisionModelWithProjection"),
    "siglip": ("SiglipModel", "SiglipVisionModel"),
    "siglip_vision_model": ("SiglipVisionModel",),
    "siglip2": ("Siglip2Model", "Siglip2VisionModel"),
    "siglip2_vision_model": ("Siglip2VisionModel",),
    "tipsv2": ("Tipsv2Model",),
    "aimv2": ("Aimv2Model", "Aimv2VisionModel"),
    "aimv2_vision_model": ("Aimv2VisionModel",),
    "internvl_vision": ("InternVLVisionModel",),
    "dinov2": ("Dinov2Model",),
    "dinov2_with_registers": ("Dinov2WithRegistersModel",),
    "dinov3_vit": ("DINOv3ViTModel",),
    "vit": ("ViTForImageClassification", "ViTModel"),
    "vit_mae": ("ViTMAEModel",),
    "vit_msn": ("ViTMSNForImageClassification", "ViTMSNModel"),
}
# DINOv3's is not here: transformers has it in torchvision alone, and there it keeps fractions of grey levels, which Meta's rounds.
PROCESSORS = {
    **dict.fromkeys(("aimv2", "aimv2_vision_model"), "CLIPImageProcessor"),
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "metaclip_2": "CLIPImageProcessor",
    "metaclip_2_vision_model": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    **dict.fromkeys(("siglip2", "siglip2_vision_model"), "Siglip2ImageProcessor"),
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "vit_msn": "ViTImageProcessor",
    "gemma3": "Gemma3ImageProcessor",
    "paligemma": "SiglipImageProcessor",
    "llava": "CLIPImageProcessor",
}


PLAIN = ("vit", "vit_mae", "vit_msn")
"""Kinds whose feature is the normed class token."""


def find_reference(source: str) -> Path:
    """The folder that transformers can run, to compare with. Raises UserError without transformers, or for a source that is
    not in its layout."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise UserError(f"the check runs the original in PyTorch: {installing('torch')}")
    found = sources.resolve(source)
    if not (found.folder / "config.json").is_file() or not found.weights.name.startswith(("model.", "pytorch_model.")):
        raise UserError(
            f"the check runs transformers, which reads Hugging Face folders; {found.weights} is not part of one"
        )
    if _model_type(found.folder) == "aimv2" and any(".patchifier." in f".{name}" for name in found.tensors()):
        raise UserError(
            f"the check runs transformers, which does not read Apple's own names of AIMv2; {found.weights} has them"
        )
    return found.folder


def _model_type(folder: Path) -> str:
    """Raises UserError for one that the check does not know."""
    kind = read_json(folder / "config.json", dict[str, Any]).get("model_type")
    if kind not in (*ARCHITECTURES, *vlm.VLMS, reference_towers.OPENGVLAB):
        raise UserError(
            f"{folder} holds a {shown(repr(kind), 60)}; the check knows {', '.join((*ARCHITECTURES, *vlm.VLMS))}"
        )
    return kind


def _architecture(folder: Path) -> str:
    known = ARCHITECTURES[_model_type(folder)]
    named = read_json(folder / "config.json", dict[str, Any]).get("architectures") or ()
    return (*(name for name in named if name in known), *known)[0]


def run_reference(folder: Path, images: np.ndarray, ids: np.ndarray | None) -> dict[str, np.ndarray]:
    """The same from transformers, in float32 on the CPU."""
    import torch
    import transformers

    config = read_json(folder / "config.json", dict[str, Any])
    if config.get("model_type") == reference_towers.OPENGVLAB:
        return reference_towers.run_internvit(folder, images)
    kind = vlm.vlm_of(config)
    if kind is not None:
        return reference_towers.run_tower(kind, folder, images)
    architecture = _architecture(folder)
    # AIMv2's texts are causal; with its fast attention transformers 5 forgets it where none is padded
    options = {"attn_implementation": "eager"} if architecture == "Aimv2Model" else {}
    network = getattr(transformers, architecture).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, **options
    )
    network.eval()
    text = getattr(network, "text_model", None)
    with torch.no_grad():
        pictures = _pictures(network, images)
        named, logits = {"image": _image(network, pictures)}, None
        if ids is not None and text is not None:
            tokens = torch.from_numpy(ids.astype(np.int64))
            model_type = network.config.model_type
            words = (tokens != 0).long() if model_type == "tipsv2" else torch.ones_like(tokens)
            masked = {"attention_mask": words} if model_type in ("tipsv2", "aimv2") else {}
            output = text(input_ids=tokens, output_hidden_states=True, **masked)
            if model_type == "tipsv2":  # of padding nothing is read, and ours is zero
                output.hidden_states = tuple(hidden * words[..., None] for hidden in output.hidden_states)
            pooled = output.pooler_output
            if hasattr(network, "text_projection"):
                pooled = network.text_projection(pooled)
            named["text"] = (pooled, output.hidden_states)
            logits = network(input_ids=tokens, **pictures, **masked).logits_per_image.numpy()
        if hasattr(network, "classifier"):
            logits = network(**pictures).logits.numpy()
    return named_rows({tower: (pooled.numpy(), blocks(hidden)) for tower, (pooled, hidden) in named.items()}, logits)


def _pictures(network: Any, images: np.ndarray) -> dict[str, Any]:
    """Pictures as a network takes them: of sheets, what the processor makes of pictures of any shape."""
    import torch

    if "spatial_shapes" not in inspect.signature(network.forward).parameters:
        return {"pixel_values": torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))}
    there, begins = (images[:, :, -1, channel] for channel in (0, 1))
    rows = begins.sum(axis=1)
    return {
        "pixel_values": torch.from_numpy(images[:, :, :-1].reshape(*images.shape[:2], -1)),
        "pixel_attention_mask": torch.from_numpy(there.astype(np.int32)),
        "spatial_shapes": torch.from_numpy(np.stack([rows, there.sum(axis=1) / rows], axis=1).astype(np.int64)),
    }


def _image(network: Any, pictures: dict[str, Any]) -> tuple[Any, Any]:
    """Pooled features as ours are, and the hidden states (zeros where a picture has no patch)."""
    import torch

    vision = getattr(network, "vision_model", getattr(network, "vit", network))
    options = {}
    if hasattr(vision.config, "mask_ratio"):  # MAE's encoder: all patches, in their order
        vision.config.mask_ratio = 0.0
        options["noise"] = torch.arange((vision.config.image_size // vision.config.patch_size) ** 2).repeat(
            len(pictures["pixel_values"]), 1
        )
    output = vision(**pictures, output_hidden_states=True, **options)
    if "pixel_attention_mask" in pictures:
        there = pictures["pixel_attention_mask"][..., None]
        return output.pooler_output, [hidden * there for hidden in output.hidden_states]
    if vision.config.model_type in PLAIN:  # their pooler, if they have one, is not the feature that is classified
        return output.last_hidden_state[:, 0], output.hidden_states
    if getattr(output, "pooler_output", None) is None:  # what is read are the patches
        return output.last_hidden_state[:, int(hasattr(vision.embeddings, "cls_token")) :], output.hidden_states
    if hasattr(network, "visual_projection"):
        return network.visual_projection(output.pooler_output), output.hidden_states
    return output.pooler_output, output.hidden_states


def reference_pixels(folder: Path, picture: Image.Image) -> np.ndarray | None:
    """What the original makes of a picture, `[S, S, 3]`; None where the folder does not describe its processor, or none is compared."""
    import transformers

    name = PROCESSORS.get(_model_type(folder))
    if name is None or not (folder / "preprocessor_config.json").is_file():
        return None
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)  # before version 5 that is Pillow's
    made = kind.from_pretrained(folder, local_files_only=True)(picture, return_tensors="np")
    pixels = made["pixel_values"][0]
    if "spatial_shapes" in made:
        return _sheet(pixels, *map(int, made["spatial_shapes"][0]))
    return np.asarray(pixels, np.float32).transpose(1, 2, 0)


def _sheet(patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The processor's padded patches of a picture as the sheet that ours makes."""
    side = math.isqrt(patches.shape[1] // 3)
    parts = patches[: rows * columns].reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return sheet_of(parts.reshape(rows * side, columns * side, 3).astype(np.float32), side, len(patches))


def reference_ids(folder: Path, texts: Sequence[str], length: int) -> np.ndarray | None:
    """The original's ids of some texts, padded to `length`; None where the folder has no tokenizer."""
    import transformers

    files = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
    if not length or not any((folder / name).is_file() for name in files):
        return None
    tokenize = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    ids = tokenize(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return np.asarray(ids["input_ids"], np.int32)
