"""An encoder as a folder that transformers loads: config.json, preprocessor_config.json, model.safetensors and the tokenizer's files.

A float encoder is written in float, whatever methods have folded into its weights; an int8 one in compressed-tensors' layout
(`compressed`). What the folder says is read again before anything is written: another spec than the encoder's is refused by name.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath
from regcache_jax.converters import compressed, huggingface_clip, huggingface_dinov2, huggingface_siglip
from regcache_jax.converters.engine import Rule, StoredTensor
from regcache_jax.converters.formats import Format, Given

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import BlockSpec, EncoderSpec, ImageSpec, Preprocessing, TextSpec
from regcache_jax.encoders import tokenizers
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.paths import drain, whole_folder
from regcache_jax.files.places import as_path
from regcache_jax.models.folder import Model

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "relu": "relu",
}
RESAMPLING = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
EMBEDDINGS = tuple(
    f"{tower}.embeddings.{kind}.weight"
    for tower in ("vision_model", "text_model")
    for kind in ("position_embedding", "token_embedding")
)
"""Matrices of CLIP and SigLIP that belong to no Linear."""
_OLD_END = 2
"""What configurations before transformers 4.31 call the end of text, which is then the largest id."""


class Family(NamedTuple):
    """How transformers calls a family: with both towers, and the image tower alone."""

    format: Format
    both: tuple[str, str]
    alone: tuple[str, str]
    processor: str


FAMILIES = {
    "clip": Family(
        huggingface_clip.FORMAT,
        ("clip", "CLIPModel"),
        ("clip_vision_model", "CLIPVisionModelWithProjection"),
        "CLIPImageProcessor",
    ),
    "siglip": Family(
        huggingface_siglip.FORMAT,
        ("siglip", "SiglipModel"),
        ("siglip_vision_model", "SiglipVisionModel"),
        "SiglipImageProcessor",
    ),
    "dinov2": Family(
        huggingface_dinov2.FORMAT, ("dinov2", "Dinov2Model"), ("dinov2", "Dinov2Model"), "BitImageProcessor"
    ),
}


def write_folder(model: Model | Encoder, out: epath.PathLike) -> epath.Path:
    """Writes an encoder, float or int8, as transformers reads it. Raises UserError where it holds what the layout cannot express."""
    encoder = model.encoder if isinstance(model, Model) else model
    family = FAMILIES.get(encoder.spec.family)
    if family is None:
        raise UserError(
            f"{encoder.spec.name} is a {encoder.spec.family}; written for transformers are {', '.join(FAMILIES)}"
        )
    compressed.refuse_inexpressible(encoder)
    if (filter := encoder.spec.preprocessing.filter) not in RESAMPLING:
        raise UserError(
            f"{encoder.spec.name} resizes pictures by {filter}; transformers has {', '.join(RESAMPLING)} (convert with another --filter)"
        )
    rules = _rules(family.format, encoder.spec.image.blocks.gated_mlp)
    written = compressed.tensors_of(encoder, rules)
    if "logit_scale" in written:  # a number in CLIP, an array of one in SigLIP
        written["logit_scale"] = written["logit_scale"].reshape(() if encoder.spec.family == "clip" else (1,))
    if encoder.spec.family == "dinov2":  # of training, never read
        written["embeddings.mask_token"] = np.zeros((1, encoder.spec.image.blocks.width), np.float32)
    config = config_of(encoder.spec)
    pictures = preprocessor_of(encoder.spec.preprocessing, family.processor)
    _check_spec(encoder.spec, family.format, written, config, pictures)
    if encoder.scheme is not None:
        config["quantization_config"] = compressed.quantization_config(encoder.scheme, written, EMBEDDINGS)
    out = as_path(out)
    with whole_folder(out) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2) + "\n")
        (folder / "model.safetensors").write_bytes(safetensors.numpy.save(written, {"format": "pt"}))
        if isinstance(model, Model) and encoder.spec.tokenization is not None:
            for file in tokenizers.find_files(encoder.spec.tokenization.kind, model.folder):
                (folder / file.name).write_bytes(file.read_bytes())
        drain(folder)
    return out


def _rules(format: Format, gated: bool) -> tuple[Rule, ...]:
    """The table in the spelling of transformers 5, in memory, which stands last; it calls the layers of a gated MLP otherwise."""
    gated_names = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    return tuple(
        rule for rule in reversed(format.rules) if gated or not any(name in rule.theirs for name in gated_names)
    )


def config_of(spec: EncoderSpec) -> dict[str, Any]:
    """config.json of an encoder."""
    family = FAMILIES[spec.family]
    if spec.family == "dinov2":
        registers = spec.image.trained_registers
        return {
            "model_type": "dinov2_with_registers" if registers else "dinov2",
            "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
            **_dinov2(spec.image),
        }
    vision = _blocks(spec.image.blocks) | {"image_size": spec.image.image_size, "patch_size": spec.image.patch_size}
    if spec.family == "clip":
        vision["projection_dim"] = spec.image.projection
    if spec.text is None:
        model_type, architecture = family.alone
        return {"model_type": model_type, "architectures": [architecture], **vision}
    model_type, architecture = family.both
    config = {
        "model_type": model_type,
        "architectures": [architecture],
        "vision_config": vision,
        "text_config": _text(spec),
    }
    return config | ({"projection_dim": spec.image.projection} if spec.family == "clip" else {})


def _blocks(blocks: BlockSpec) -> dict[str, Any]:
    return {
        "hidden_size": blocks.width,
        "intermediate_size": blocks.mlp_width,
        "num_hidden_layers": blocks.num_blocks,
        "num_attention_heads": blocks.num_heads,
        "hidden_act": ACTIVATIONS[blocks.activation],
        "layer_norm_eps": blocks.norm_eps,
    }


def _text(spec: EncoderSpec) -> dict[str, Any]:
    text: TextSpec | None = spec.text
    assert text is not None
    config = _blocks(text.blocks) | {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    if spec.family == "siglip":
        return config | {"projection_size": text.projection}
    config["eos_token_id"] = _OLD_END if text.pooling == "argmax" else text.eot_id
    if spec.tokenization is not None and spec.tokenization.bos_id is not None:
        config["bos_token_id"] = spec.tokenization.bos_id
    return config | {"projection_dim": text.projection}


def _dinov2(image: ImageSpec) -> dict[str, Any]:
    blocks, grid = image.blocks, image.position_grid or image.grid
    config = {name: value for name, value in _blocks(blocks).items() if name != "intermediate_size"}
    ratio = 4.0 if blocks.gated_mlp else blocks.mlp_width / blocks.width
    config |= {
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "use_swiglu_ffn": blocks.gated_mlp,
        "image_size": grid * image.patch_size,
        "patch_size": image.patch_size,
        "qkv_bias": True,
    }
    if blocks.gated_mlp:
        config["hidden_act"] = "gelu"  # says nothing there: the gate is SiLU
    return config | ({"num_register_tokens": image.trained_registers} if image.trained_registers else {})


def preprocessor_of(pictures: Preprocessing, processor: str) -> dict[str, Any]:
    """preprocessor_config.json."""
    side = {"height": pictures.image_size, "width": pictures.image_size}
    square = {"height": pictures.resize_size, "width": pictures.resize_size}
    return {
        "image_processor_type": processor,
        "do_resize": True,
        "size": {"shortest_edge": pictures.resize_size} if pictures.resize == "shortest" else square,
        "resample": RESAMPLING[pictures.filter],
        "do_center_crop": pictures.resize == "shortest" or pictures.image_size != pictures.resize_size,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pictures.mean),
        "image_std": list(pictures.std),
        "do_convert_rgb": True,
    }


def _check_spec(
    spec: EncoderSpec, format: Format, arrays: dict[str, np.ndarray], config: dict[str, Any], pictures: dict[str, Any]
) -> None:
    """Raises UserError where the folder would be read as another encoder: names the first part that differs."""
    tensors = {
        name: StoredTensor(array.shape, array.dtype, name, functools.partial(np.asarray, array))
        for name, array in arrays.items()
    }
    read = format.spec(Given(spec.name, format.read_names(tensors), config, pictures))
    for field in dataclasses.fields(spec):
        ours, theirs = getattr(spec, field.name), getattr(read, field.name)
        if field.name in ("name", "tokenization", "logit_bias") or ours == theirs:
            continue
        if dataclasses.is_dataclass(ours) and dataclasses.is_dataclass(theirs):
            parts = [
                part.name
                for part in dataclasses.fields(ours)
                if getattr(ours, part.name) != getattr(theirs, part.name, None)
            ]
            raise UserError(f"{spec.name}: {format.name} cannot express {field.name}'s {', '.join(parts)}")
        raise UserError(f"{spec.name}: {format.name} cannot express {field.name} {ours!r}")
