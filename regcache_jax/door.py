"""Python's door: the verbs that users call, with what they are given checked once, here; the code behind trusts its types.

What may be given where an object is wanted: a loaded model or a model folder for an encoder, a name or a dictionary for a scheme, a
dictionary for a configuration, a file for a plan, and for an array of preprocessed pictures a `Dataset`, pictures, or an iterable of
arrays (in batches or one by one, with masks or without).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect as signatures
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.options import refuse_unknown
from regcache_jax.core.plan import RegisterPlan
from regcache_jax.core.precision import float32_products
from regcache_jax.core.scheme import Rule, Scheme
from regcache_jax.core.search_config import SearchConfig
from regcache_jax.core.spec import EncoderSpec, Tap
from regcache_jax.data import Dataset, load_images
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.encoders.preprocess import preprocess
from regcache_jax.registers.refine import RefineConfig

BATCH = 32
"""Pictures that come one by one are put together to so many."""
BYTES_FROM = 25
"""Values beyond so many times the largest of a preprocessed picture are taken for bytes, 0..255."""


class Verb(NamedTuple):
    """Where a verb is, and what it takes for `images`: one array (of any shape, where the encoder's positions are rotary), batches of a
    stream, or batches with masks."""

    home: str
    images: str = "array"


VERBS = {
    "classify": Verb("encoders.classifier"),
    "encode_image": Verb("encoders.encoder", "any shape"),
    "encode_patches": Verb("encoders.taps"),
    "encode_text": Verb("encoders.encoder"),
    "inspect": Verb("registers.inspect", "masked"),
    "judge": Verb("registers.verdict"),
    "load": Verb("models.folder"),
    "load_plan": Verb("models.plan_file"),
    "make_plan": Verb("core.plan"),
    "plant": Verb("studies.planted"),
    "quantize": Verb("quantization.quantize", "batches"),
    "refine": Verb("registers.refine"),
    "rivals": Verb("studies.rivals"),
    "save": Verb("models.folder"),
    "save_plan": Verb("models.plan_file"),
    "search": Verb("registers.search.search"),
    "sensitivity": Verb("registers.sensitivity"),
}
CONFIGS: dict[str, type] = {"search": SearchConfig, "rivals": SearchConfig, "refine": RefineConfig}


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = _checked(name, getattr(importlib.import_module(f"regcache_jax.{VERBS[name].home}"), name))
    globals()[name] = found  # one function a verb, so that `jax.jit` of it finds what it has compiled
    return found


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A verb behind its checks."""
    signature = signatures.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        refuse_unknown(f"rc.{name}", kwargs, signature.parameters)
        given = signature.bind(*args, **kwargs)
        asked = given.arguments
        if "encoder" in asked:
            asked["encoder"] = as_encoder(asked["encoder"])
        if "scheme" in asked:
            asked["scheme"] = as_scheme(asked["scheme"])
        if asked.get("tap") is not None:
            asked["tap"] = as_config(asked["tap"], Tap)
        if asked.get("config") is not None:
            asked["config"] = as_config(asked["config"], CONFIGS[name])
        if asked.get("plan") is not None:
            asked["plan"] = as_plan(asked["plan"])
        if "profile" in asked:
            _check_profile(asked["profile"])
        for place in ("folder", "path"):
            if place in asked:
                _check_place(asked[place])
        if "key" in asked:
            asked["key"], asked["value"] = as_rows(asked["key"], asked["value"])
            asked["copies"] = jnp.asarray(asked.get("copies", 1.0), jnp.float32)
            _check_whole(asked)
        if "kinds" in asked and isinstance(asked["kinds"], str):
            asked["kinds"] = (asked["kinds"],)
        if asked.get("images") is not None:
            asked["images"] = as_images(asked["images"], asked["encoder"].spec, VERBS[name].images)
        if "ids" in asked:
            _check_ids(asked["ids"])
        with float32_products():
            return function(*given.args, **given.kwargs)

    return checked


def _kind(value: object) -> str:
    return shown(value, 60) if isinstance(value, str) else type(value).__name__


def as_encoder(value: object) -> Encoder:
    """An encoder, that of a loaded model, or that of a model folder."""
    if isinstance(value, str | os.PathLike):
        from regcache_jax.models.folder import load

        value = load(value)
    found = getattr(value, "encoder", value)
    if not isinstance(found, Encoder):
        raise UserError(f"expected an encoder (`rc.load(FOLDER).encoder`), a model or its folder, got {_kind(value)}")
    return found


def as_scheme(value: object) -> Scheme:
    """A scheme, by its name or its fields too."""
    if isinstance(value, str):
        value = Scheme.named(value)
        if value is None:
            raise UserError("scheme float quantises nothing; try w8a8, w6a6, w4a4, w8 or w4")
    if isinstance(value, dict):
        refuse_unknown("Scheme", value, [field.name for field in dataclasses.fields(Scheme)])
        for rule in value.get("rules", ()):
            refuse_unknown("Rule", rule, [field.name for field in dataclasses.fields(Rule)])
        value = Scheme.from_json(value)
    if not isinstance(value, Scheme):
        raise UserError(f'expected a scheme (`rc.Scheme(...)`) or its name ("w8a8"), got {_kind(value)}')
    return value


def as_config(value: object, wanted: type) -> Any:
    """A configuration, by its fields too."""
    if isinstance(value, dict):
        refuse_unknown(wanted.__name__, value, [field.name for field in dataclasses.fields(wanted)])
        value = wanted(**value)
    if not isinstance(value, wanted):
        raise UserError(f"expected a {wanted.__name__} or a dictionary of its fields, got {_kind(value)}")
    return value


def as_plan(value: object) -> RegisterPlan:
    """A register plan, from its file too."""
    if isinstance(value, str | os.PathLike):
        from regcache_jax.models.plan_file import load_plan

        value = load_plan(value)[0]
    if not isinstance(value, RegisterPlan):
        raise UserError(f"expected a register plan (`result.plan`) or its file, got {_kind(value)}")
    return value


def as_rows(key: Any, value: object) -> tuple[Any, Any]:
    """Keys and values of a plan, as arrays of one shape [L, R, H, K]."""
    try:
        rows = jnp.asarray(key, jnp.float32), jnp.asarray(value, jnp.float32)
    except (TypeError, ValueError):
        raise UserError(f"expected keys and values [L, R, H, K], got {_kind(key)} and {_kind(value)}") from None
    if rows[0].ndim != 4 or 0 in rows[0].shape or rows[0].shape != rows[1].shape:
        shapes = " and ".join(str(list(each.shape)) for each in rows)
        raise UserError(
            f"keys and values must both be [L, R, H, K] (blocks, registers, heads, head size), got {shapes}"
        )
    return rows


def _check_whole(asked: Mapping[str, Any]) -> None:
    """Raises UserError for numbers of blocks and tokens that are not whole."""
    for name in ("start", "stop", "delete_block", "delete_count", "num_patches"):
        number = asked.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | np.integer)):
            raise UserError(f"{name} must be a whole number, got {shown(repr(number), 60)}")


def _check_profile(value: object) -> None:
    from regcache_jax.registers.inspect import Profile

    if not isinstance(value, Profile):
        raise UserError(f"expected a profile (`rc.inspect(encoder, images)`), got {_kind(value)}")


def _check_place(value: object) -> None:
    """Raises UserError for what is no path, and for a path that leads through a file."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"expected a path, got {_kind(value)}")
    for above in Path(os.fspath(value)).parents if "://" not in str(value) else ():
        if above.exists() and not above.is_dir():
            raise UserError(f"{shown(value)}: {shown(above)} is a file, no folder")


def as_images(value: object, spec: EncoderSpec, how: str) -> Any:
    """Preprocessed pictures as a verb takes them. Raises UserError that says what to do with those that are not."""
    prepare = functools.partial(preprocess, spec=spec.preprocessing)
    if isinstance(value, Dataset):
        return load_images(value, prepare)
    if isinstance(value, str | bytes | os.PathLike | Image.Image):
        value = [value]
    if isinstance(value, list | tuple) and value and isinstance(value[0], str | bytes | os.PathLike | Image.Image):
        return np.stack([prepare(each) for each in value])
    if hasattr(value, "__array__") or isinstance(value, jax.Array):
        return checked_images(value, spec, any_shape=how == "any shape" and not spec.image.position_table)
    if not isinstance(value, Iterable):
        raise UserError(f"expected preprocessed pictures (an array [n, Y, X, 3]) or a dataset, got {_kind(value)}")
    stream = _stream(value, spec)
    if how == "masked":
        return stream
    real = (images[np.asarray(mask, bool)] for images, mask in stream)
    if how == "batches":
        return real
    parts = list(real)
    if not parts:
        raise UserError("there are no pictures: the iterable is empty (an iterator can be read once only)")
    return np.concatenate(parts)


def _stream(value: Iterable[Any], spec: EncoderSpec) -> Iterator[tuple[Any, np.ndarray]]:
    """Batches with masks out of batches with masks, batches, or single pictures."""
    items = iter(value)
    for item in items:
        if isinstance(item, tuple) and len(item) == 2:
            yield checked_images(item[0], spec), item[1]
        elif np.ndim(item) == 3:
            singles = np.stack([np.asarray(each) for each in (item, *itertools.islice(items, BATCH - 1))])
            yield checked_images(singles, spec), np.ones(len(singles), bool)
        else:
            yield checked_images(item, spec), np.ones(len(item), bool)


def checked_images(value: object, spec: EncoderSpec, any_shape: bool = False) -> Any:
    """One array of preprocessed pictures: squares of the encoder's side (sheets, where it takes those), or of any shape of whole patches.
    Values are looked at where they lie on the host: a device would have to be waited for."""
    images = value if isinstance(value, jax.Array) else np.asarray(value)
    picture, shape = spec.image.picture_shape, tuple(images.shape)
    wanted = f"{spec.name} takes preprocessed pictures [n, {', '.join(map(str, picture))}]"
    if shape == picture:
        raise UserError(f"{wanted}; this is one picture: give images[None]")
    if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        raise UserError(f"{wanted}, got {list(shape)}: channels come last; give np.transpose(images, (0, 2, 3, 1))")
    whole = len(shape) == 4 and all(pixels and pixels % spec.image.patch_size == 0 for pixels in shape[1:3])
    if len(shape) != 4 or shape[3] != 3 or not (whole if any_shape else shape[1:] == picture):
        raise UserError(f"{wanted}, got {list(shape)}; `model.preprocess(picture)` makes one of a picture of any size")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"{wanted} as floats, got {images.dtype}; if these are bytes 0..255, `model.preprocess(picture)` makes floats of them"
        )
    if isinstance(images, np.ndarray) and images.size:
        _check_values(images, spec)
    return images


def _check_values(images: np.ndarray, spec: EncoderSpec) -> None:
    largest = float(np.max(np.abs(images)))  # NaN where there is one
    if not np.isfinite(largest):
        number = int(np.argmin(np.isfinite(images).all(axis=(1, 2, 3))))
        raise UserError(f"picture {number} holds NaN or infinity")
    mean, std = np.asarray(spec.preprocessing.mean), np.asarray(spec.preprocessing.std)
    usual = float(np.max(np.maximum(mean, 1 - mean) / std))
    if largest > BYTES_FROM * usual:
        raise UserError(
            f"the pictures hold {largest:g}, preprocessed ones at most {usual:.3g}; if these are bytes 0..255, "
            "`model.preprocess(picture)` normalises them"
        )


def _check_ids(value: object) -> None:
    texts = value if isinstance(value, list | tuple) else [value]
    if texts and isinstance(texts[0], str):
        raise UserError("expected padded token ids [n, T], got text; `model.tokenize(texts)` makes ids of texts")
    if not isinstance(value, jax.Array) and not np.issubdtype(np.asarray(value).dtype, np.integer):
        raise UserError(f"expected padded token ids [n, T], integers, got {np.asarray(value).dtype}")
