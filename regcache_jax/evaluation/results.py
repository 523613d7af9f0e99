"""Result rows in CLIP_benchmark's JSON keys; everything of ours under the one key `quantization`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from etils import epath

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
) -> Row:
    """One result. Metrics are fractions; `quantization` holds scheme, activations, weights, method, registers, plan,
    float_reference, examples, versions."""
    return {
        "dataset": dataset,
        "model": model,
        "pretrained": pretrained,
        "task": task,
        "metrics": dict(metrics),
        "language": language,
        "quantization": {**quantization, "versions": versions()},
    }


def write(path: epath.PathLike, rows: list[Row] | Row) -> None:
    """Writes one row as an object, several as a list; beside the final name first, then renamed."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
