"""A register plan on disk: one safetensors file with JSON metadata, which PyTorch users can read as well.

Tensors `key` and `value` [L, R, H, K] and `copies` are float32; `start`, `stop`, `delete_block` and `delete_count` are int32
numbers. `files.tensors` says how it is sealed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata as package_metadata
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from pydantic import Field, StringConstraints
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.plan import RegisterPlan, make_plan
from regcache_jax.core.scheme import Estimator
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.identity import encoder_hash
from regcache_jax.files.bounded import parse_json
from regcache_jax.files.paths import refuse_existing
from regcache_jax.files.places import as_path
from regcache_jax.files.tensors import read_tensors, write_tensors

FLOATS, NUMBERS = ("key", "value", "copies"), ("start", "stop", "delete_block", "delete_count")


class _Calibration(TypedDict):
    """The calibration that a plan was judged with."""

    images: Annotated[int, Field(ge=1)]
    held_out: Annotated[int, Field(ge=1)]
    verify_share: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]
    draws: Annotated[int, Field(ge=1)]
    estimator: Estimator
    hash: str


class _Claim(TypedDict):
    """The error that a plan was found to have on held-out pictures."""

    error: float
    spread: float
    worst: float
    images: Annotated[int, Field(ge=1)]


class _Metadata(TypedDict, total=False):
    """The part of a plan's metadata that is read again."""

    encoder: str
    encoder_hash: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    calibration: _Calibration
    claim: _Claim


def save_plan(path: epath.PathLike, plan: RegisterPlan, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a plan, beside its final name first. `metadata`: JSON values; callers put the encoder's hash and name,
    reference set, scheme, objective and the search's figures there. Raises UserError if the file exists."""
    path = as_path(path)
    refuse_existing(path)
    tensors = {"key": plan.key, "value": plan.value, "copies": plan.copies}
    arrays = {name: np.asarray(array, np.float32) for name, array in tensors.items()}
    arrays |= {name: np.asarray(getattr(plan, name), np.int32) for name in NUMBERS}
    header = {"regcache_jax": package_metadata.version("regcache-jax"), **(metadata or {})}
    write_tensors(path, arrays, {"regcache": json.dumps(header, sort_keys=True)})


def load_plan(path: epath.PathLike) -> tuple[RegisterPlan, dict[str, Any]]:
    """Reads a plan and its metadata. Raises UserError that names the file and what is wrong with it."""
    path = as_path(path)
    if not path.exists():
        raise UserError(f"there is no register plan {path}; `regcache search` makes one")
    if path.is_dir():
        raise UserError(f"{path} is not a register plan (one .safetensors file)")
    arrays, texts = read_tensors(path, "register plan", {"regcache"})
    metadata: dict[str, Any] = parse_json(texts.get("regcache", "{}"), dict[str, Any], path)
    parse_json(texts.get("regcache", "{}"), _Metadata, path)
    wanted = {"key", "value", "copies", *NUMBERS}
    if set(arrays) != wanted:
        raise UserError(f"{path} is not a register plan: it holds {shown(sorted(arrays))}, expected {sorted(wanted)}")
    faults = [
        f"{name} is {arrays[name].dtype}, expected float32" for name in FLOATS if arrays[name].dtype != np.float32
    ]
    faults += [
        f"{name} is {arrays[name].dtype}{list(arrays[name].shape)}, expected one int32"
        for name in NUMBERS
        if arrays[name].dtype != np.int32 or arrays[name].size != 1
    ]
    if arrays["key"].ndim != 4 or arrays["key"].shape != arrays["value"].shape or not arrays["key"].size:
        shapes = f"{arrays['key'].shape}, {arrays['value'].shape}"
        faults.append(f"key and value must both be [L, R, H, K] and not empty, got {shapes}")
    if faults:
        raise UserError(f"{path}: {'; '.join(faults)}")
    try:
        numbers = {name: int(arrays[name].item()) for name in NUMBERS}
        key, value, copies = (jnp.asarray(arrays[name]) for name in FLOATS)
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
