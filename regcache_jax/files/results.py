"""Result rows in CLIP_benchmark's JSON keys; everything of ours under the one key `quantization`, a written row's hash included."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Annotated, Any

from etils import epath
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from regcache_jax.core.errors import UserError
from regcache_jax.files.bounded import read_json
from regcache_jax.files.paths import write_json
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import SEAL, seal

Row = dict[str, Any]


def versions() -> dict[str, str]:
    """Versions of what made a result."""
    return {name: metadata.version(name) for name in ("regcache-jax", "jax", "flax", "aqtp")}


def surroundings() -> dict[str, str]:
    """What surrounds a run: devices, system, Python, and the version of everything that the package needs."""
    import jax

    needed = [
        re.split(r"[^\w.-]", line)[0] for line in metadata.requires("regcache-jax") or () if "extra ==" not in line
    ]
    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in ("regcache-jax", *sorted({*needed, "jaxlib"}))},
    }


def row(
    *,
    dataset: str,
    model: str,
    pretrained: str,
    task: str,
    metrics: Mapping[str, float],
    quantization: Mapping[str, Any],
    language: str = "en",
    dumped: Mapping[str, list[str]] | None = None,
) -> Row:
    """One result. Metrics are fractions; `quantization` holds scheme, activations, weights, method, registers, plan,
    float_reference, examples, versions. `dumped`: `classnames` and `templates`, where they are asked for."""
    return {
        "dataset": dataset,
        "model": model,
        "pretrained": pretrained,
        "task": task,
        "metrics": dict(metrics),
        "language": language,
        **(dumped or {}),
        "quantization": {**quantization, "versions": versions()},
    }


class _Row(TypedDict):
    """What every row holds; callers' fields stand beside it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    dataset: str
    model: str
    task: str
    metrics: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    quantization: dict[str, Any]


def write(path: epath.PathLike, rows: list[Row] | Row) -> None:
    """Writes one row as an object, several as a list, each sealed; beside the final name first, then renamed."""
    write_json(path, [sealed(row) for row in rows] if isinstance(rows, list) else sealed(rows))


def read(path: epath.PathLike) -> list[Row]:
    """Rows that `write` wrote. Raises UserError for another file, and for rows that are not as they were written."""
    rows: list[Row] = [dict(row) for row in read_json(path, list[_Row])]
    for number, row in enumerate(rows, 1):
        own = unsealed(row)
        if sealed(own) != row:
            raise UserError(f"{path}: row {number} is not as it was written (its hash differs); make it again")
        rows[number - 1] = own
    return rows


def sealed(row: Row) -> Row:
    """A row with its hash, under `quantization`."""
    own = unsealed(row)
    return {**own, "quantization": {**own["quantization"], SEAL: seal(own)[SEAL]}}


def unsealed(row: Row) -> Row:
    """A row without its hash."""
    return {**row, "quantization": {name: value for name, value in row["quantization"].items() if name != SEAL}}


def write_each(folder: epath.PathLike, rows: list[Row]) -> list[epath.Path]:
    """Writes one file a row into a folder, as `clip_benchmark build` reads them and under the names that CLIP_benchmark gives;
    returns the files.

    `build` tells rows apart by `model` and `pretrained` alone, so that here `pretrained` says scheme and row as well."""
    files = []
    for each in rows:
        each = {**each, "pretrained": full_name(each)}
        parts = (each[key] for key in ("dataset", "pretrained", "model", "language", "task"))
        name = "_".join(re.sub(r"[^A-Za-z0-9._+-]+", "-", part).strip("-") for part in parts)
        files.append(as_path(folder) / f"{name}.json")
        write(files[-1], each)
    return files


def full_name(row: Row) -> str:
    """What was evaluated: the checkpoint, and, unless it is the float encoder as it came, scheme and row."""
    quantization = row["quantization"]
    beyond = [
        quantization["scheme"],
        quantization.get("row") or ("registers" if quantization["registers"] else "plain"),
    ]
    return row["pretrained"] if beyond == ["float", "plain"] else " ".join([row["pretrained"], *beyond])
