"""Hugging Face's Flax CLIP (`flax_model.msgpack`), which transformers 5 no longer has: the table of the PyTorch model, with
Flax's names and Flax's order of axes."""

from __future__ import annotations

import dataclasses

from regcache_jax.converters import huggingface_clip
from regcache_jax.converters.engine import (
    Arrangement,
    Rule,
    heads_in_to_heads,
    in_out_to_heads,
    keep,
    oihw_to_hwio,
    out_heads_to_heads_out,
    out_in_to_in_out,
)
from regcache_jax.converters.formats import Format

_IN_FLAX: dict[Arrangement, Arrangement] = {
    out_in_to_in_out: in_out_to_heads,
    out_heads_to_heads_out: heads_in_to_heads,
    oihw_to_hwio: keep,
}


def flax_rule(rule: Rule) -> Rule:
    """One line of the PyTorch table as Flax has it: `/` for `.`, and `kernel`, `scale` or `embedding` for `weight`."""
    path = rule.theirs.replace(".", "/")
    if path.endswith("/weight"):
        module = path.removesuffix("/weight")
        is_table = module.endswith(("position_embedding", "token_embedding"))
        is_norm = module.endswith(("norm", "norm1", "norm2", "layrnorm"))
        path = f"{module}/{'embedding' if is_table else 'scale' if is_norm else 'kernel'}"
    return dataclasses.replace(rule, theirs=path, arrangement=_IN_FLAX.get(rule.arrangement, rule.arrangement))


RULES = tuple(flax_rule(rule) for rule in huggingface_clip.RULES)

FORMAT = Format(
    name="Hugging Face Flax CLIP",
    model_types=("clip", "clip_vision_model"),
    classes=r"CLIP|FlaxCLIP",
    marks=("vision_model/embeddings/class_embedding", "vision_model/embeddings/patch_embedding/kernel"),
    rules=RULES,
    spec=lambda given: huggingface_clip.spec(
        dataclasses.replace(given, tensors={_torch_name(name): tensor for name, tensor in given.tensors.items()})
    ),
    ignored=("*/embeddings/position_ids",),
)


def _torch_name(name: str) -> str:
    """Flax's name as the PyTorch configuration reader asks for it."""
    return name.replace("/", ".").replace(".kernel", ".weight")
