"""NVIDIA's C-RADIO, by the names of its Hugging Face folders (`radio_model.model.*`).

Pixels of 0..1 go into the published model, which normalises them by the numbers of its `input_conditioner`: here those are preprocessing.
Epsilon, heads and exact GELU are timm's. What its adaptors make of the tokens for other models, and a rotation of patches behind the last
block (`feature_normalizer`), are left out, and said."""

from __future__ import annotations

import dataclasses
import math

from regcache_jax.converters.engine import Rule, flat_oihw_to_hwio, rows, without_class_row
from regcache_jax.converters.formats import Format, Given, num_heads
from regcache_jax.converters.meta_dinov2 import BLOCKS, MLP

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec, Preprocessing
from regcache_jax.encoders import radio

_PATCHES = "patch_generator"
RULES = (
    Rule(f"{_PATCHES}.embedder.weight", "image/patch_embedding/kernel", flat_oihw_to_hwio),
    Rule(f"{_PATCHES}.pos_embed", "image/position_embedding", without_class_row),
    Rule(f"{_PATCHES}.cls_token.token", ("image/class_token", "image/registers"), rows),
    *BLOCKS,
    *MLP,
)


def spec(given: Given) -> EncoderSpec:
    """The spec of a C-RADIO. Raises UserError where the tokens that are read are not the first ones."""
    width, inputs = given.shape(f"{_PATCHES}.embedder.weight", 2)
    patch = math.isqrt(inputs // 3)
    tokens = given.shape(f"{_PATCHES}.cls_token.token", 2)[0]
    size = (width, given.count("blocks.*.norm1.weight"), num_heads(width), given.shape("blocks.0.mlp.fc1.weight", 2)[0])
    pixels = radio.PIXELS if given.row is None or given.row.spec is None else given.row.spec.image.image_size
    found = radio.radio_spec(
        given.name,
        size,
        _classes(given, tokens),
        tokens,
        patch=patch,
        pixels=pixels,
        grid=given.side(given.shape(f"{_PATCHES}.pos_embed", 3)[1]),
        final_norm=given.has("norm.weight"),
    )
    return dataclasses.replace(found, preprocessing=_scaled(given, found.preprocessing))


def _classes(given: Given, tokens: int) -> int:
    """How many class tokens are read; their numbers stand in the file."""
    stored = given.tensors.get("summary_idxs")
    if stored is None:
        raise UserError(
            f"{given.name} lacks summary_idxs, which says how many of its {tokens} tokens in front are read"
        )
    count = math.prod(stored.shape)
    numbers = stored.read().reshape(-1).tolist() if 0 < count <= tokens else []
    if not numbers or numbers != list(range(count)):
        raise UserError(
            f"{given.name} reads the tokens {numbers or list(stored.shape)}; those that are read must be the first ones"
        )
    return count


def _scaled(given: Given, pixels: Preprocessing) -> Preprocessing:
    """Pixels by the file's own mean and standard deviation; CLIP's, which all published ones have, where it has none. Raises UserError for
    what is no three numbers."""
    mean, std = _three(given, "norm_mean", pixels.mean), _three(given, "norm_std", pixels.std)
    return dataclasses.replace(pixels, mean=mean, std=std)


def _three(given: Given, name: str, otherwise: tuple[float, float, float]) -> tuple[float, float, float]:
    stored = given.tensors.get(f"input_conditioner.{name}")
    if stored is None:
        return otherwise
    if math.prod(stored.shape) != 3:
        raise UserError(f"{given.name}: input_conditioner.{name} is {list(stored.shape)}, expected three numbers")
    red, green, blue = (float(f"{number:.8g}") for number in stored.read().reshape(-1))
    return red, green, blue


FORMAT = Format(
    name="C-RADIO",
    marks=(f"{_PATCHES}.cls_token.token", f"{_PATCHES}.pos_embed"),
    rules=RULES,
    spec=spec,
    classes="RADIO",
    prefixes=(("radio_model.model.", ""), ("radio_model.", "")),
    ignored=("summary_idxs", "input_conditioner.*"),
    heads=(f"{_PATCHES}.video_embedder.*", "adaptors.*", "feature_normalizer.*", "inter_feature_normalizer.*"),
)
