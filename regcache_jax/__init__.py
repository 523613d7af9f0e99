"""Vision encoders in int8 without training: RegCache (cached prefix registers, deleted outlier tokens) in JAX.

    import regcache_jax as rc
    model = rc.load(rc.bundled_model())

Names are imported when they are first used, so that `import regcache_jax` is quick.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

if not (Path(__file__).parent / "converters").is_dir():
    # Inside a clone `configs/` and `converters/`, which users edit, stand beside this folder; in a wheel they lie in it.
    __path__.append(str(Path(__file__).parents[1]))

_HOMES = {
    "BlockSpec": "core.block_spec",
    "Encoder": "encoders.encoder",
    "EncoderSpec": "core.spec",
    "ImageSpec": "core.spec",
    "Model": "models.folder",
    "Preprocessing": "core.spec",
    "Profile": "registers.inspect",
    "RegisterPlan": "core.plan",
    "Scheme": "core.scheme",
    "SearchConfig": "core.search_config",
    "SearchResult": "registers.search.result",
    "Tap": "core.spec",
    "TextSpec": "core.spec",
    "Tokenization": "core.spec",
    "UserError": "core.errors",
    "bundled_model": "demo.bundled",
    "classify": "door",
    "convert": "converters",
    "encode_image": "door",
    "encode_patches": "door",
    "encode_text": "door",
    "inspect": "door",
    "judge": "door",
    "load": "door",
    "load_plan": "door",
    "make_plan": "door",
    "plant": "door",
    "progress": "files.progress",
    "quantize": "door",
    "refine": "door",
    "rivals": "door",
    "save": "door",
    "save_plan": "door",
    "search": "door",
    "sensitivity": "door",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
