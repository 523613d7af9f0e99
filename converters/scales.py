"""Calibrated scales as JSON, a site a line, for engines that want only those: a value is rounded as
`clip(round((value + offset) / scale), -largest, largest)`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from regcache_jax.converters.compressed import TOWERS

from regcache_jax.core.errors import UserError
from regcache_jax.core.names import OFFSETS, SCALES, to_names
from regcache_jax.core.scheme import INPUTS, SITE_LAYERS, Scheme
from regcache_jax.encoders.encoder import Encoder
from regcache_jax.files.paths import write_whole

GROUPS = ("class_token", "trained_registers", "patches")
"""What the three numbers of a site are for, where token groups have scales of their own."""


def write_scales(encoder: Encoder, out: epath.PathLike) -> None:
    """Writes a line a site of each block, whole or not at all. Raises UserError for an encoder that was never calibrated."""
    lines = [json.dumps(line) for line in scale_lines(encoder)]
    if not lines:
        raise UserError(f"{encoder.spec.name} has no calibrated scales: it is float, or measures them as it runs")
    write_whole(out, ("\n".join(lines) + "\n").encode())


def scale_lines(encoder: Encoder) -> Iterator[dict[str, Any]]:
    """Tower, block (of the pooling head: none), site, the layers that read it, bits, the largest integer, and its `scale`: a number, or one
    a group of tokens; where they are there also `offset`, a number or one a channel, and `negative_scale`, of values below zero."""
    names, scheme = to_names(encoder.params), encoder.scheme
    for tower in (*(f"{tower}/blocks" for tower in TOWERS), "image/head"):
        part = {"text/blocks": "text", "image/head": "head"}.get(tower)
        own = scheme if part is None or scheme is None else scheme.of_part(part)
        stored = {site: names.get(f"{tower}/{SCALES}/{site}") for site in INPUTS}
        sites = {site: np.asarray(scale) for site, scale in stored.items() if scale is not None}
        if own is None or not sites:
            continue
        stacked = part != "head"
        count = len(next(iter(sites.values()))) if stacked else 1
        for block in range(count):
            for site, scale in sites.items():
                if site in SITE_LAYERS and not own.at(site, block).quantized:
                    continue
                line = _line(own, site, block, np.asarray(scale[block] if stacked else scale))
                for key, name in (("offset", f"{OFFSETS}/{site}"), ("negative_scale", f"{SCALES}/{site}_negative")):
                    if (found := names.get(f"{tower}/{name}")) is not None:
                        line[key] = np.asarray(found[block] if stacked else found).tolist()
                yield {"tower": tower, "block": block if stacked else None, **line}


def _line(scheme: Scheme, site: str, block: int, scale: np.ndarray) -> dict[str, Any]:
    bits = scheme.at(site, block).activation_bits if site in SITE_LAYERS else scheme.activation_bits
    numbers = dict(zip(GROUPS, scale.tolist(), strict=True)) if scale.ndim else scale.tolist()
    layers = ["/".join(layer) for layer in SITE_LAYERS.get(site, ())]
    return {"site": site, "layers": layers, "bits": bits, "largest": 2 ** (bits - 1) - 1, "scale": numbers}
