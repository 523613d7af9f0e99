"""Vision encoders in int8 without training: RegCache (cached prefix registers, deleted outlier tokens) in JAX.

    import regcache_jax as rc
    model = rc.load(rc.bundled_model())

Names are imported when they are first used, so that `import regcache_jax` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Encoder": "encoders.encoder",
    "EncoderSpec": "encoders.spec",
    "Model": "checkpoints",
    "Profile": "registers.inspect",
    "RegisterPlan": "registers.plan",
    "Scheme": "quantization.scheme",
    "SearchConfig": "registers.space",
    "SearchResult": "registers.search",
    "UserError": "errors",
    "bundled_model": "demo.bundled",
    "convert": "converters",
    "encode_image": "encoders.encoder",
    "encode_text": "encoders.encoder",
    "inspect": "registers.inspect",
    "judge": "registers.verdict",
    "load": "checkpoints",
    "load_plan": "registers.plan_file",
    "make_plan": "registers.plan",
    "plant": "registers.planted",
    "quantize": "quantization.quantize",
    "refine": "registers.refine",
    "rivals": "registers.rivals",
    "save": "checkpoints",
    "save_plan": "registers.plan_file",
    "search": "registers.search",
    "sensitivity": "registers.sensitivity",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
