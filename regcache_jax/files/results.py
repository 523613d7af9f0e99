"""Result rows in CLIP_benchmark's JSON keys; everything of ours under the one key `quantization`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from etils import epath

from regcache_jax.files.paths import write_whole

Row = dict[str, Any]


def versions() -> dict[str, str]:
    """Versions of what made a result."""
    return {name: metadata.version(name) for name in ("regcache-jax", "jax", "flax", "aqtp")}


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


def write(path: epath.PathLike, rows: list[Row] | Row) -> None:
    """Writes one row as an object, several as a list; beside the final name first, then renamed."""
    write_whole(path, (json.dumps(rows, indent=2, allow_nan=False) + "\n").encode())


def write_each(folder: epath.PathLike, rows: list[Row]) -> list[epath.Path]:
    """Writes one file a row into a folder, as `clip_benchmark build` reads them and under the names that CLIP_benchmark gives;
    returns the files.

    `build` tells rows apart by `model` and `pretrained` alone, so that here `pretrained` says scheme and row as well."""
    files = []
    for each in rows:
        each = {**each, "pretrained": full_name(each)}
        parts = (each[key] for key in ("dataset", "pretrained", "model", "language", "task"))
        name = "_".join(re.sub(r"[^A-Za-z0-9._+-]+", "-", part).strip("-") for part in parts)
        files.append(epath.Path(folder) / f"{name}.json")
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
