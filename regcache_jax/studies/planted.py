"""Planted truth: random encoders of any shape whose outliers are put there on purpose, so that what is found can be checked.

A few channels are set aside and no ordinary weight reads or writes them. *Marker* patches (two an image, in random places)
carry a marker direction. In the planted block one head lets them look for company: they attend to each other, and write down
how much attention they found; a neuron of the MLP fires where a marker found too little and writes the *sink* direction. A
register made of their keys and values is company enough, and no sink appears. No other head sees markers or sinks (their keys
are far below the others), so features are the same with and without them, and all that int8 loses, it loses to the outlier.

The class token and a trained register may carry markers and neurons of their own, and one channel of all tokens an offset.
Kinds of outliers are switched by biases and offsets alone: encoders of one seed have the same kernels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from regcache_jax.core.errors import UserError
from regcache_jax.core.names import from_tree, to_tree
from regcache_jax.core.spec import HALF, BlockSpec, EncoderSpec, ImageSpec, Preprocessing, Rotary
from regcache_jax.encoders.encoder import Encoder, init_params

KINDS = ("patch sinks", "class-token outlier", "trained-register outlier", "channel outlier")
MARKERS = 2
"""Marker patches an image."""
ENOUGH = 6.0
"""Markers and copies of a register that get half of the planted head's attention; below it, sinks appear."""
SIGNS = np.array([1.0, -1.0, 1.0, -1.0], np.float32)
"""A direction's four channels; their sum is zero, so LayerNorm's mean does not move."""
FIRING = 300.0
"""What a planted neuron gives, and every channel of a sink."""
CHANNEL_OFFSET = 12.0
STRENGTH = 2.0
"""Norm of a marker over that of an ordinary token."""


class Planted(NamedTuple):
    """A planted encoder, images for it, and the truth: the block whose MLP makes the sinks, which tokens, which direction."""

    encoder: Encoder
    images: Float[np.ndarray, "n Y X 3"]
    block: int
    tokens: Bool[np.ndarray, "n N"]
    direction: Float[np.ndarray, "D"]


def planted_spec(
    width: int = 128,
    num_blocks: int = 6,
    num_heads: int = 4,
    image_size: int = 64,
    patch_size: int = 8,
    trained_registers: int = 0,
    rotary: Rotary | None = None,
) -> EncoderSpec:
    """An image tower with a class token. `planted_spec(768, 12, 12, 224, 16)` has the shape of ViT-B/16.

    With `rotary` positions there is no table of them and keys have no bias, as in DINOv3."""
    blocks = BlockSpec(width, num_blocks, num_heads, 4 * width, "gelu_tanh", 1e-6)
    if rotary is not None:
        blocks = dataclasses.replace(blocks, qkv_bias="qv", rotary=rotary)
    image = ImageSpec(image_size, patch_size, blocks, True, "class", trained_registers, position_table=rotary is None)
    return EncoderSpec(
        "planted", "clip", image, Preprocessing(image_size, "squash", "bilinear", image_size, HALF, HALF)
    )


def plant(
    kinds: Collection[str],
    seed: int = 0,
    *,
    spec: EncoderSpec | None = None,
    block: int | None = None,
    num_images: int = 64,
    firing: float = FIRING,
) -> Planted:
    """An encoder with outliers of the given `kinds` (of `KINDS`; none: no outliers), and images with marker patches.

    `block` (by default the middle one) is where neurons fire, as strongly as `firing` says. Raises UserError for unknown kinds, and
    for a trained-register outlier in an encoder without trained registers."""
    spec = spec or planted_spec(trained_registers=int("trained-register outlier" in kinds))
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise UserError(f"unknown kinds of outliers {', '.join(unknown)}; there are {', '.join(KINDS)}")
    if "trained-register outlier" in kinds and not spec.image.trained_registers:
        raise UserError("a trained-register outlier needs an encoder with trained registers")
    block = spec.image.blocks.num_blocks // 2 if block is None else block
    rng = np.random.default_rng(seed)
    channels = rng.permutation(spec.image.blocks.width)
    marker, sink, found, class_marker, register_marker = channels[:20].reshape(5, 4)
    offset = channels[20]
    drawn = init_params(spec, jax.random.key(seed))
    params = jax.tree.map(lambda leaf: np.array(leaf), to_tree(drawn.image))
    _set_aside(params, channels[:21])
    amplitude = STRENGTH * math.sqrt(spec.image.blocks.width) / 2
    pattern = rng.choice(np.array([-1, 1], np.float32), (spec.image.patch_size, spec.image.patch_size, 3))
    _mark(params, pattern, marker, amplitude)
    params["class_token"][class_marker] = amplitude * SIGNS
    if spec.image.trained_registers:
        params["registers"][0, register_marker] = amplitude * SIGNS
    _hide(params, (marker, sink), spec.image)
    _plant_head(params, block, marker, found, spec.image)
    for neuron, (kind, carrier) in enumerate(zip(KINDS[:3], (marker, class_marker, register_marker), strict=True)):
        _plant_neuron(params, block, neuron, carrier, firing if kind in kinds else None)
    # the first neuron falls silent where its marker has found company, and writes the sink
    params["blocks"]["mlp"]["fc1"]["kernel"][block, found, 0] = -SIGNS * 2 * firing * STRENGTH / 4
    params["blocks"]["mlp"]["fc2"]["kernel"][block, 0, sink] = SIGNS
    if "channel outlier" in kinds:
        _lift(params, int(offset))
    images, places = _images(spec.image, pattern, num_images, rng)
    direction = np.zeros(spec.image.blocks.width, np.float32)
    direction[sink] = SIGNS / 2
    encoder = Encoder(from_tree({"image": jax.tree.map(jnp.asarray, params)}), spec=spec)
    return Planted(encoder, images, block, places, direction)


def _set_aside(params: dict[str, Any], channels: np.ndarray) -> None:
    """No ordinary weight reads or writes these channels, and the features leave them out."""
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    for reader in (attention["query"], attention["key"], attention["value"], mlp["fc1"]):
        reader["kernel"][:, channels] = 0
    for writer in (attention["out"], mlp["fc2"]):
        writer["kernel"][..., channels] = 0
    for table in (params.get("position_embedding"), params["patch_embedding"]["kernel"], params["class_token"]):
        if table is not None:
            table[..., channels] = 0
    params["final_norm"]["scale"][channels] = 0
    if "registers" in params:
        params["registers"][:, channels] = 0


def _lift(params: dict[str, Any], channel: int) -> None:
    """An offset in one channel of all tokens; trained registers have none where a table of positions gives it."""
    if "position_embedding" in params:
        params["position_embedding"][:, channel] += CHANNEL_OFFSET
        return
    for leaf in (params["patch_embedding"]["bias"], params["class_token"]):
        leaf[channel] += CHANNEL_OFFSET


def _mark(params: dict[str, Any], pattern: np.ndarray, marker: np.ndarray, amplitude: float) -> None:
    """The patch embedding turns the marker pattern into the marker direction and nothing else."""
    kernel = params["patch_embedding"]["kernel"]
    shape, unit = kernel.shape, pattern.reshape(-1, 1) / np.linalg.norm(pattern)
    flat = kernel.reshape(-1, shape[-1])
    flat = math.sqrt(3.0) * (flat - unit @ (unit.T @ flat))  # uniform pixels have variance 1/3
    flat[:, marker] = amplitude * SIGNS * unit / np.linalg.norm(pattern)
    params["patch_embedding"]["kernel"] = flat.reshape(shape)


def _hide(params: dict[str, Any], directions: tuple[np.ndarray, ...], spec: ImageSpec) -> None:
    """One query channel of every head is a constant that keys of these directions stand 30 logits below."""
    attention, blocks = params["blocks"]["attention"], spec.blocks
    channel, _ = steady_channels(blocks)
    for name in ("query", "key"):
        attention[name]["kernel"][..., [channel, _partner(channel, blocks)]] = 0
    attention["query"]["bias"][..., channel] = 4.0
    weight = 30.0 * math.sqrt(blocks.head_dim) / (4.0 * 2 * math.sqrt(blocks.width))
    for direction in directions:
        attention["key"]["kernel"][:, direction, :, channel] = -weight * SIGNS[:, None, None]


def steady_channels(spec: BlockSpec) -> tuple[int, int]:
    """Two channels of a head that positions turn least; any two where positions turn none."""
    return (0, 1) if spec.rotary is None else (spec.head_dim // 2 - 1, spec.head_dim // 4 - 1)


def _partner(channel: int, spec: BlockSpec) -> int:
    """The channel that rotary positions mix with another, in the half layout; itself where there are none."""
    return channel if spec.rotary is None else (channel + spec.head_dim // 2) % spec.head_dim


def _plant_head(params: dict[str, Any], block: int, marker: np.ndarray, found: np.ndarray, spec: ImageSpec) -> None:
    """Head 0 of the planted block: markers attend to markers, and write 2 x the attention they found into `found`."""
    attention, blocks = params["blocks"]["attention"], spec.blocks
    projection = 2 * math.sqrt(blocks.width)  # of a normed marker on its signs
    for name in ("query", "key", "value"):
        attention[name]["kernel"][block, :, 0] = 0
        if "bias" in attention[name]:
            attention[name]["bias"][block, 0] = 0
    logit = math.log((spec.num_tokens - MARKERS) / ENOUGH)
    gain = math.sqrt(logit * math.sqrt(blocks.head_dim)) / projection
    for name in ("query", "key"):
        attention[name]["kernel"][block, marker, 0, steady_channels(blocks)[1]] = gain * SIGNS
    value = 0.3
    attention["value"]["kernel"][block, marker, 0] = value / projection * SIGNS[:, None]
    attention["out"]["kernel"][block, 0] = 0
    attention["out"]["kernel"][block, 0, :, found] = (2 / (blocks.head_dim * value) * SIGNS)[:, None]


def _plant_neuron(params: dict[str, Any], block: int, neuron: int, carrier: np.ndarray, firing: float | None) -> None:
    """A neuron that only tokens with this direction move: to 2 x `firing`, or (None) nowhere near it."""
    fc1, fc2 = params["blocks"]["mlp"]["fc1"], params["blocks"]["mlp"]["fc2"]
    projection = 2 * math.sqrt(fc1["kernel"].shape[1])
    fc1["kernel"][block, :, neuron] = 0
    fc1["kernel"][block, carrier, neuron] = 4 * (firing or FIRING) / projection * SIGNS
    fc1["bias"][block, neuron] = -100 * FIRING if firing is None else -2 * firing
    fc2["kernel"][block, neuron] = 0


def _images(
    spec: ImageSpec, pattern: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n Y X 3"], Bool[np.ndarray, "n N"]]:
    """Uniform noise with marker patches in random places, and where they are among the tokens."""
    grid, patch = spec.grid, spec.patch_size
    shape = (count, grid, grid, patch, patch, 3)
    patches = rng.uniform(-1, 1, shape).astype(np.float32).reshape(count, grid**2, *shape[3:])
    marked = np.zeros((count, spec.num_tokens), bool)
    for image in range(count):
        places = rng.permutation(grid**2)[:MARKERS]
        patches[image, places] = pattern
        marked[image, spec.num_protected + places] = True
    images = patches.reshape(shape).transpose(0, 1, 3, 2, 4, 5).reshape(count, grid * patch, grid * patch, 3)
    return images, marked
