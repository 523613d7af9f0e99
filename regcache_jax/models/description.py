"""What `encoder.json` holds: its schema, and what a description without hashes (version 0.1.0) can still be checked by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from etils import epath
from pydantic import ConfigDict, Field, StringConstraints
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from regcache_jax.core.errors import UserError, shown
from regcache_jax.core.scheme import Scheme
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.files.bounded import parse_json, read_bytes
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import check_description, lengths, refuse, wrong_lengths

ENCODER_FILE, PARAMS_FOLDER = "encoder.json", "params"
FORMAT_VERSION = 2
"""Of the folders that are written: 2 lists size and hash of every file. 1 (version 0.1.0) lists sizes of the parameters at most."""
DESCRIPTION_LIMIT = 16 << 20
"""Bytes of encoder.json."""

Size = Annotated[int, Field(ge=0, lt=2**63)]
Path = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^/\x00]+(/[^/\x00]+)*$")]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Shape = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=8)]
Type = Annotated[str, StringConstraints(max_length=32)]


class _Description(TypedDict):
    """The part of encoder.json that is ours; callers' metadata stand beside it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    format_version: int
    spec: dict[str, Any]
    scheme: dict[str, Any] | None
    parameters: dict[Path, tuple[Type, Shape]]


class _Sizes(_Description, total=False):
    parameter_files: dict[Path, Size]


class _Sealed(_Description):
    sealed_files: dict[Path, tuple[Size, Hash]]
    sha256: Hash


class _Version(TypedDict):
    format_version: int


def read_description(folder: epath.PathLike) -> dict[str, Any]:
    """`encoder.json` of a model folder, held to its schema and its own hash. Raises UserError that says what the folder is not."""
    folder = as_path(folder)
    file = folder / ENCODER_FILE
    if not folder.exists():
        raise UserError(f"there is no model folder {folder}; `regcache convert SOURCE --out {folder}` makes one")
    if not file.exists():
        raise UserError(
            f"{folder} is not a model folder: it has no {ENCODER_FILE}; `regcache convert` makes one of a checkpoint"
        )
    content = read_bytes(file, DESCRIPTION_LIMIT)
    version = parse_json(content, _Version, file)["format_version"]
    if version not in (1, FORMAT_VERSION):
        raise UserError(
            f"{shown(file)} has format version {version}; this regcache_jax reads versions 1 to {FORMAT_VERSION}"
        )
    if version == 1:
        return dict(parse_json(content, _Sizes, file))
    check_description(file, content)
    return dict(parse_json(content, _Sealed, file))


def read_spec(tree: Any, file: epath.Path) -> EncoderSpec:
    """A spec from encoder.json. Raises UserError for what describes no encoder."""
    try:
        return EncoderSpec.from_json(tree)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} does not describe an encoder: {str(error).splitlines()[0]}") from None


def read_scheme(tree: Mapping[str, Any] | None, file: epath.Path) -> Scheme | None:
    """A scheme from encoder.json, every value of its type. Raises UserError for others and for names that are not known."""
    if tree is None:
        return None
    try:
        Scheme.from_json(dict(tree))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: scheme: {error}") from None
    return parse_json(json.dumps(tree), Scheme, file)


def check_sizes(folder: epath.Path, description: Mapping[str, Any]) -> None:
    """Raises UserError where a file of the parameters is missing or cut: what can be said of a folder without hashes.

    Folders written before encoder.json listed the files are left to Orbax."""
    listed = description.get("parameter_files", {})
    params = folder / PARAMS_FOLDER
    refuse(params, wrong_lengths(lengths(params), listed) if listed else [])
