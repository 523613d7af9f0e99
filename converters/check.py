"""`--check`: the original in PyTorch and ours on the same pictures and texts, compared block by block."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from regcache_jax.converters import sources

from regcache_jax.core.errors import UserError
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.text import text_features
from regcache_jax.encoders.vision import image_features
from regcache_jax.files.bounded import read_json
from regcache_jax.models.folder import Model

# The classes of transformers that run a kind of checkpoint: the one its config.json names if it is here, else the first. A
# checkpoint never chooses what is run.
ARCHITECTURES = {
    "clip": ("CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel"),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "siglip": ("SiglipModel", "SiglipVisionModel"),
    "siglip_vision_model": ("SiglipVisionModel",),
    "dinov2": ("Dinov2Model",),
    "dinov2_with_registers": ("Dinov2WithRegistersModel",),
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far ours is from the original: the largest difference, that over the largest magnitude, and the ratio of norms."""

    what: str
    largest: float
    worst: float
    typical: float


def check(source: str, model: Model | Encoder, *, num_images: int = 1, seed: int = 0) -> list[Difference]:
    """Runs transformers on the checkpoint and our encoder on the same random pictures and token ids, in float32.

    Gives a row for the hidden state that enters each block (image, then text), then the pooled image and text features before
    they are normalised. Raises UserError without transformers or for a layout it does not read."""
    encoder = model.encoder if isinstance(model, Model) else model
    folder = find_reference(source)
    images, ids = random_inputs(encoder, num_images, seed)
    theirs = run_reference(folder, images, ids)
    ours = run_ours(encoder, images, ids)
    return [difference(what, ours[what], theirs[what]) for what in theirs]


def random_inputs(encoder: Encoder, num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Normal pixels `[n, S, S, 3]` and token ids `[2, T]` that end as the family's texts do: one short text, one full one."""
    rng = np.random.default_rng(seed)
    spec = encoder.spec
    images = rng.standard_normal((num_images, spec.image.image_size, spec.image.image_size, 3)).astype(np.float32)
    if spec.text is None or spec.tokenization is None:
        return images, None
    length, vocabulary = spec.text.context_length, spec.text.vocab_size
    ids = rng.integers(3, vocabulary - 2, (2, length)).astype(np.int32)
    end = spec.text.eot_id if spec.text.eot_id is not None else vocabulary - 1
    ids[0, length // 2 :] = spec.tokenization.pad_id
    ids[0, length // 2] = ids[1, -1] = end
    return images, ids


def run_ours(encoder: Encoder, images: np.ndarray, ids: np.ndarray | None) -> dict[str, np.ndarray]:
    """Our encoder's hidden states and features, named as `run_reference` names them."""
    collect = {"hidden": lambda trace: trace.hidden}
    image = jax.jit(lambda params, x: image_features(params, x, encoder.spec.image, collect=collect))
    output = image(encoder.params.image, jnp.asarray(images, encoder.dtype))
    named = {"image": (output.features, output.collected["hidden"])}
    if ids is not None:
        text = jax.jit(lambda params, x: text_features(params, x, encoder.spec.text, collect=collect))
        features, collected = text(encoder.params.text, jnp.asarray(ids))
        named["text"] = (features, collected["hidden"])
    return _named({tower: (np.asarray(features), np.asarray(hidden)) for tower, (features, hidden) in named.items()})


def run_reference(folder: Path, images: np.ndarray, ids: np.ndarray | None) -> dict[str, np.ndarray]:
    """The same from transformers, in float32 on the CPU."""
    import torch
    import transformers

    network = getattr(transformers, _architecture(folder)).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    network.eval()
    vision, text = getattr(network, "vision_model", network), getattr(network, "text_model", None)
    with torch.no_grad():
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        output = vision(pixel_values=pixels, output_hidden_states=True)
        pooled = output.pooler_output
        if hasattr(network, "visual_projection"):
            pooled = network.visual_projection(vision(pixel_values=pixels).pooler_output)
        named = {"image": (pooled, output.hidden_states)}
        if ids is not None and text is not None:
            tokens = torch.from_numpy(ids.astype(np.int64))
            output = text(input_ids=tokens, output_hidden_states=True)
            pooled = output.pooler_output
            if hasattr(network, "text_projection"):
                pooled = network.text_projection(pooled)
            named["text"] = (pooled, output.hidden_states)
    return _named({tower: (features.numpy(), _blocks(hidden)) for tower, (features, hidden) in named.items()})


def _blocks(hidden_states: Any) -> np.ndarray:
    """What enters each block; transformers adds what leaves the last one."""
    return np.stack([hidden.numpy() for hidden in hidden_states[:-1]])


def _named(towers: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    rows = {
        f"{tower} block {block}": hidden
        for tower, (_, by_block) in towers.items()
        for block, hidden in enumerate(by_block)
    }
    return rows | {f"{tower} features": features for tower, (features, _) in towers.items()}


def difference(what: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Compares two arrays. Raises UserError for different shapes."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    if ours.shape != theirs.shape:
        raise UserError(f"{what} is {list(ours.shape)} here and {list(theirs.shape)} in the original")
    largest = float(np.abs(ours - theirs).max())
    return Difference(
        what,
        largest,
        largest / max(float(np.abs(theirs).max()), 1e-30),
        float(np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-30)),
    )


def find_reference(source: str) -> Path:
    """The folder that transformers can run, to compare with. Raises UserError without transformers, or for a source that is
    not in its layout."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise UserError("the check runs the original in PyTorch: pip install regcache-jax[torch]")
    found = sources.resolve(source)
    if not (found.folder / "config.json").is_file() or not found.weights.name.startswith(("model.", "pytorch_model.")):
        raise UserError(
            f"the check runs transformers, which reads Hugging Face folders; {found.weights} is not part of one"
        )
    _architecture(found.folder)
    return found.folder


def _architecture(folder: Path) -> str:
    config = read_json(folder / "config.json", dict[str, Any])
    known = ARCHITECTURES.get(config.get("model_type", ""))
    if known is None:
        raise UserError(f"{folder} holds a {config.get('model_type')!r}; the check knows {', '.join(ARCHITECTURES)}")
    named = [name for name in config.get("architectures") or () if name in known]
    return (*named, *known)[0]
