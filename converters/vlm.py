"""The vision tower of a vision-language model: found in the whole checkpoint, and ended where its language model reads it.

A row of `VLMS` a `model_type`; everything else is the tower's own: its names are those of Hugging Face's CLIP, SigLIP or InternViT, its
sizes stand in `vision_config`. The projector, which belongs to the language model, is not ours: what we give is its input.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from regcache_jax.converters.formats import PROCESSOR, section, setting
from regcache_jax.converters.stored import Tensors

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.spec import Tap

_CLIP, _SIGLIP, _INTERN = "clip_vision_model", "siglip_vision_model", "internvl_vision"
_QWEN = ("qwen3_vl", "qwen3_vl_vision")
_IDEFICS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}
"""What transformers fills in for Idefics 3 and SmolVLM where `vision_config` is silent."""


@dataclasses.dataclass(frozen=True)
class Vlm:
    """A kind of vision-language model: its name, what its language model takes of the tower (by config.json), the kinds of tower
    that it may have, what fills in for `vision_config`, how its processor is read, below which word its tower's tensors are
    (after `model.` since transformers 5, and before it with `vision_model.` inside), how the names of such a tower alone begin, which parts
    of it are read, and what `vision_config` calls its numbers of blocks and heads."""

    title: str
    tap: Callable[[Mapping[str, Any]], Tap]
    towers: tuple[str, ...] = (_SIGLIP,)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processor: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda told: told
    below: str = "vision_tower"
    alone: str = "vision_model."
    parts: str = "embeddings|encoder|layernorm|pre_layrnorm|post_layernorm|head"
    counts: tuple[str, str] = ("num_hidden_layers", "num_attention_heads")

    def own_name(self, name: str) -> str | None:
        """What a tensor is called inside the tower; None for those of the rest."""
        below = rf"(?:{self.below}\.)+(?:vision_model\.)?" if self.below != "vision_model" else r"vision_model\."
        found = re.match(rf"(?:model\.)?{below}(?=(?:{self.parts})\.)", name)
        return None if found is None else name[found.end() :]

    def is_tower(self, name: str) -> bool:
        """Whether a tensor belongs to the vision tower."""
        return self.own_name(name) is not None


class Tower(NamedTuple):
    """A tower as if it stood alone: its tensors and configuration, where it is read, and what is to be said."""

    tensors: Tensors
    config: dict[str, Any]
    tap: Tap
    notes: tuple[str, ...]


def _normed(config: Mapping[str, Any]) -> Tap:
    return Tap()


def _layer_tap(config: Mapping[str, Any], latest: int = -2) -> Tap:
    """`vision_feature_layer` counts hidden states, of which there is one more than blocks: from the end both count alike. LLaVA's is one
    before the last, behind which CLIP has a norm; InternVL has none."""
    layer, strategy = (
        config.get("vision_feature_layer", latest),
        config.get("vision_feature_select_strategy", "default"),
    )
    if type(layer) is not int or layer > latest:
        which = "one block before the last" if latest == -2 else "one block"
        raise UserError(
            f"config.json: vision_feature_layer should be {which}, counted from the end ({latest}), got {shown(repr(layer))}"
        )
    if strategy not in ("default", "full"):
        raise UserError(
            f"config.json: vision_feature_select_strategy should be default or full, got {shown(repr(strategy))}"
        )
    return Tap(layer, normed=False, class_token=strategy == "full")


def _tiles(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """LLaVA 1.6 cuts a picture into squares of `shortest_edge`; the picture itself is squashed into one."""
    size = section(told, "size", PROCESSOR).get("shortest_edge")
    return told if size is None else {**told, "size": {"height": size, "width": size}, "do_center_crop": False}


def _idefics_tiles(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """Idefics 3 cuts a picture into squares of `max_image_size`; the picture itself is squashed into one."""
    size = section(told, "max_image_size", PROCESSOR).get("longest_edge")
    return told if size is None else {**told, "size": {"height": size, "width": size}}


VLMS: dict[str, Vlm] = {
    "gemma3": Vlm("Gemma 3", _normed),  # and MedGemma
    "paligemma": Vlm("PaliGemma", _normed),
    "llava": Vlm("LLaVA", _layer_tap, (_CLIP, _SIGLIP)),
    "llava_next": Vlm("LLaVA 1.6", _layer_tap, (_CLIP, _SIGLIP), processor=_tiles),
    "internvl": Vlm("InternVL", functools.partial(_layer_tap, latest=-1), (_INTERN,), alone=""),
    "qwen3_vl": Vlm(
        "Qwen3-VL",
        lambda config: Tap(normed=False),
        _QWEN,
        processor=lambda told: {},  # which keeps the shape of pictures; here they are squashed
        below="visual",
        alone="",
        parts="patch_embed|pos_embed|blocks",
        counts=("depth", "num_heads"),
    ),
    "idefics3": Vlm("Idefics 3", _normed, ("idefics3_vision", "idefics3"), _IDEFICS, _idefics_tiles, "vision_model"),
    "smolvlm": Vlm(
        "SmolVLM", _normed, ("smolvlm_vision", "idefics3_vision", "idefics3"), _IDEFICS, _idefics_tiles, "vision_model"
    ),
}


def vlm_of(config: Mapping[str, Any]) -> Vlm | None:
    """The kind of vision-language model that a configuration describes; None for other models."""
    kind = config.get("model_type")
    return VLMS.get(kind) if isinstance(kind, str) else None


def tower_of(vlm: Vlm, tensors: Tensors, config: Mapping[str, Any], where: object) -> Tower:
    """The tower under its own names, as far as its language model reads it.

    Raises UserError where there is none, where `vision_config` is of another kind, and where it speaks of another number of blocks or
    of patches than the file."""
    vision = section(config, "vision_config", "config.json")
    kind = vision.get("model_type", vlm.towers[0])
    if kind not in vlm.towers:
        raise UserError(
            f"{where} is a {vlm.title} with a vision tower of kind {shown(repr(kind))}; {', '.join(vlm.towers)} can be read"
        )
    found = {f"{vlm.alone}{inner}": each for name, each in tensors.items() if (inner := vlm.own_name(name)) is not None}
    if not found:
        raise UserError(f"{where} is a {vlm.title} without a vision tower: none of its tensors is below {vlm.below}")
    own = {**vlm.defaults, **vision, "model_type": kind if kind in (_CLIP, _INTERN, *_QWEN) else _SIGLIP}
    own |= {ours: own[theirs] for ours, theirs in zip(Vlm.counts, vlm.counts, strict=True) if theirs in own}
    stated = setting(own, "num_hidden_layers", 12)
    numbers = {int(match[1]) for match in map(_BLOCK.match, found) if match}
    if numbers != set(range(stated)):
        raise UserError(
            f"{where} has {len(numbers)} blocks in its vision tower, config.json says {stated}; one of the files is of another model"
        )
    _check_tokens(own, where)
    tap = vlm.tap(config)
    if stated + tap.block < 0:
        raise UserError(f"config.json: vision_feature_layer {tap.block} is before the first of {stated} blocks")
    return _ended(vlm, Tower(found, own, tap, ()), stated + tap.block + 1)


_BLOCK = re.compile(r"(?:(?:vision_model\.)?encoder\.layers?|blocks)\.(\d{1,4})\.")


def _check_tokens(vision: Mapping[str, Any], where: object) -> None:
    """Raises UserError where PaliGemma's `num_image_tokens` is not the number of patches."""
    tokens = vision.get("num_image_tokens")
    if tokens is None:
        return
    side = setting(vision, "image_size", 224) // setting(vision, "patch_size", 16)
    if tokens != side * side:
        raise UserError(
            f"{where}: config.json says num_image_tokens {shown(repr(tokens))}, its tower has {side} x {side} patches"
        )


def _ended(vlm: Vlm, tower: Tower, count: int) -> Tower:
    """The tower without what comes after its tap, and without a pooling head, which no language model reads."""

    def read(name: str) -> bool:
        block = _BLOCK.match(name)
        if block is not None:
            return int(block[1]) < count
        behind = "vision_model.head." if tower.tap.normed else ("vision_model.head.", "vision_model.post_layernorm.")
        return not name.startswith(behind)

    kept = {name: tensor for name, tensor in tower.tensors.items() if read(name)}
    config = {**tower.config, "num_hidden_layers": count, "vision_use_head": False}
    norm = "after" if tower.tap.normed else "before"
    notes = [
        f"took the vision tower of a {vlm.title}; its language model reads what leaves block {count - 1}, {norm} the final norm"
    ]
    if left := sorted(set(tower.tensors) - set(kept)):
        notes.append(f"not read of the tower: {counted(len(left), 'tensor')} ({left[0]}, ...)")
    if tower.tap.class_token:
        notes.append("its language model takes the class token too: tap=Tap(normed=False, class_token=True)")
    return Tower(kept, config, tower.tap, tuple(notes))
