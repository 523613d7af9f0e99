"""What trainers and libraries put around an encoder's weights: taken off by a table, and said.

A checkpoint's tensors are named by the dictionaries and modules they lie in. Beginnings that only wrap (`WRAPPERS`, in any order and
number) are taken off where what is left is in a known layout. Where two sets of weights fit, a rule decides or the user is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from regcache_jax.converters.readers import Tensors

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError

WRAPPERS: dict[str, str] = {
    "module": "DistributedDataParallel's",
    "_orig_mod": "torch.compile's",
    "_fsdp_wrapped_module": "FullyShardedDataParallel's",
    "_checkpoint_wrapped_module": "activation checkpointing's",
    "_forward_module": "Lightning Fabric's",
    "state_dict": "a trainer's",
    "model_state_dict": "a trainer's",
    "model_state": "a trainer's",
    "weights": "a trainer's",
    "params": "a trainer's",
    "model": "a trainer's or Lightning's",
    "net": "a trainer's",
    "network": "a trainer's",
    "backbone": "a model with heads'",
    "encoder_model": "a model with heads'",
    "clip": "a model with a CLIP inside's",
    "clip_model": "a model with a CLIP inside's",
    "student": "DINOv2's trainer's",
    "teacher": "DINOv2's trainer's",
    "state_dict_ema": "averaged weights'",
    "model_ema": "averaged weights'",
    "ema_model": "averaged weights'",
    "ema_state_dict": "averaged weights'",
    "ema": "averaged weights'",
}
INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Wrappers that also stand in the middle of a name, around one module."""
PREFERRED = (("teacher", "student"),)
"""Of two sets that differ in this word alone the first is taken: DINOv2's features are the teacher's."""
DEEPEST = 5

# What no table of weights can mend: a pattern of a tensor's name, and what the file is.
REFUSED: dict[str, str] = {
    r"(^|\.)(lora_[AB]|lora_(up|down|embedding)|hada_w\d|ia3_l|base_layer)(\.|$)": (
        "adapters (LoRA and the like) that are not merged into the weights; merge them first (peft: `merge_and_unload()`, then "
        "`save_pretrained`) and convert the result"
    ),
    r"(^|\.)(_?flat_param|_flat_params?)(\.|$|_)": (
        "FSDP's flattened parameters, a shard of each; save a full state dict (StateDictType.FULL_STATE_DICT) and convert that"
    ),
    r"(^|\.)(qweight|qzeros|g_idx)$": "GPTQ's or AWQ's packed integers; convert the float checkpoint they were made from",
    r"(^|\.)(SCB|weight_format|quant_state\.|weight\.absmax|weight\.quant_map|weight\.nested_absmax)": (
        "bitsandbytes' packed integers; convert the float checkpoint they were made from"
    ),
    r"(^|\.)(weight_scale|weight_scale_inv|input_scale|weight_zero_point|weight_packed)$": (
        "weights that are quantised already (compressed-tensors, fp8); convert the float checkpoint they were made from"
    ),
}


class Unwrapped(NamedTuple):
    """Tensors by the names of their own library, and sentences on what was taken off and left out."""

    tensors: Tensors
    notes: tuple[str, ...]


def refuse_foreign(tensors: Tensors, file: object) -> None:
    """Raises UserError for weights that are not plain floats in their places, named as what they are."""
    for pattern, what in REFUSED.items():
        found = next((name for name in tensors if re.search(pattern, name)), None)
        if found is not None:
            raise UserError(f"{file} holds {what} ({found})")


def unwrap(tensors: Tensors, fits: Callable[[Tensors], bool], file: object, wanted: str | None = None) -> Unwrapped:
    """The tensors without wrappers, where something that `fits` is found below them; else as they are.

    `wanted`: the beginning of the names that are to be taken, where there are several sets. Raises UserError that names the sets."""
    tensors = {_without_inner(name): tensor for name, tensor in tensors.items()}
    if wanted is None and fits(tensors):
        return Unwrapped(tensors, ())
    sets = {beginning: _below(tensors, beginning) for beginning in sorted(set(_beginnings(tensors)))}
    fitting = {beginning: found for beginning, found in sets.items() if fits(found)}
    if wanted is not None:
        fitting = {beginning: found for beginning, found in fitting.items() if beginning.startswith(f"{wanted}.")}
        if not fitting:
            there = ", ".join(sorted({name.partition(".")[0] for name in tensors})[:8])
            raise UserError(f"{file} has no weights of an encoder below {wanted!r}; its names begin with {there}")
    for better, worse in PREFERRED:
        replaced = [
            each for each in fitting if each.replace(f"{worse}.", f"{better}.") in fitting and f"{worse}." in each
        ]
        fitting = {beginning: found for beginning, found in fitting.items() if beginning not in replaced}
    fitting = {
        beginning: found
        for beginning, found in fitting.items()
        if not any(deeper != beginning and deeper.startswith(beginning) for deeper in fitting)
    }
    if not fitting:
        return Unwrapped(tensors, ())
    if len(fitting) > 1:
        names = [beginning.rstrip(".") for beginning in fitting]
        averaged = [name for name in names if any(WRAPPERS[word].startswith("averaged") for word in name.split("."))]
        told = f" ({', '.join(averaged)}: an exponential moving average, EMA)" if averaged else ""
        choices = " or ".join(f"--weights {name}" for name in names)
        raise UserError(f"{file} holds {len(names)} sets of weights{told}; choose one with {choices}")
    ((beginning, found),) = fitting.items()
    left = [name for name in tensors if not name.startswith(beginning)]
    notes = [f"took the names below {beginning.rstrip('.')!r}"]
    if left:
        kinds = sorted({name.partition(".")[0] for name in left})
        notes.append(
            f"left out {counted(len(left), 'other tensor')} ({', '.join(kinds[:6])}{', ...' if len(kinds) > 6 else ''})"
        )
    return Unwrapped(found, tuple(notes))


def _without_inner(name: str) -> str:
    words = name.split(".")
    return ".".join(word for place, word in enumerate(words) if not (place and word in INSIDE))


def _beginnings(tensors: Tensors) -> Iterator[str]:
    """Every beginning of a name that is made of wrappers alone."""
    for name in tensors:
        words = name.split(".")[:-1]
        for count in range(1, min(DEEPEST, len(words)) + 1):
            if words[count - 1] not in WRAPPERS:
                break
            yield ".".join(words[:count]) + "."


def _below(tensors: Tensors, beginning: str) -> Tensors:
    return {name.removeprefix(beginning): tensor for name, tensor in tensors.items() if name.startswith(beginning)}
