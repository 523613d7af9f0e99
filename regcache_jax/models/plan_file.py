"""A register plan on disk: one safetensors file with JSON metadata, which PyTorch users can read as well.

Tensors `key` and `value` [L, R, H, K] and `copies` are float32; `start`, `stop`, `delete_block` and `delete_count` are int32
numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata as package_metadata
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.files.paths import refuse_existing, write_whole

NUMBERS = ("start", "stop", "delete_block", "delete_count")
LARGEST_FILE = 1 << 30


def save_plan(path: epath.PathLike, plan: RegisterPlan, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a plan, beside its final name first. `metadata`: JSON values; callers put the encoder's hash and name,
    reference set, scheme, objective and the search's figures there. Raises UserError if the file exists."""
    path = epath.Path(path)
    refuse_existing(path)
    tensors = {"key": plan.key, "value": plan.value, "copies": plan.copies}
    arrays = {name: np.asarray(array, np.float32) for name, array in tensors.items()}
    arrays |= {name: np.asarray(getattr(plan, name), np.int32) for name in NUMBERS}
    header = {"regcache_jax": package_metadata.version("regcache-jax"), **(metadata or {})}
    write_whole(path, safetensors.numpy.save(arrays, {"regcache": json.dumps(header, sort_keys=True)}))


def load_plan(path: epath.PathLike) -> tuple[RegisterPlan, dict[str, Any]]:
    """Reads a plan and its metadata. Raises UserError that names the file and what is wrong with it."""
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"there is no register plan {path}; `regcache search` makes one")
    if path.is_dir() or path.stat().length > LARGEST_FILE:
        raise UserError(f"{path} is not a register plan (one .safetensors file)")
    content = path.read_bytes()
    try:
        arrays = safetensors.numpy.load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        metadata = json.loads(header.get("regcache", "{}"))
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable register plan: {error}") from None
    wanted = {"key", "value", "copies", *NUMBERS}
    if set(arrays) != wanted or not isinstance(metadata, dict):
        raise UserError(f"{path} is not a register plan: it holds {sorted(arrays)}, expected {sorted(wanted)}")
    if arrays["key"].ndim != 4 or arrays["key"].shape != arrays["value"].shape:
        raise UserError(
            f"{path}: key and value must both be [L, R, H, K], got {arrays['key'].shape}, {arrays['value'].shape}"
        )
    try:
        numbers = {name: int(arrays[name].item()) for name in NUMBERS}
        key, value, copies = (jnp.asarray(arrays[name], jnp.float32) for name in ("key", "value", "copies"))
        plan = make_plan(key, value, copies=copies, **numbers)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return plan, metadata


def check_plan(path: epath.PathLike, metadata: Mapping[str, Any], encoder: Encoder) -> None:
    """Raises UserError where a plan was found on another encoder (by hash; a plan without one is taken as it is)."""
    made_for = metadata.get("encoder_hash")
    if made_for is not None and made_for != encoder_hash(encoder):
        raise UserError(
            f"{path} was found on another encoder ({metadata.get('encoder', 'unknown')}), not on these weights of "
            f"{encoder.spec.name}; run `regcache search` on this one"
        )
