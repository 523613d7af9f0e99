"""A small run as the report sees it: result rows, and the story of how they came to be."""

from __future__ import annotations

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def plain(text: str) -> str:
    """With spaces that break."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


def result(scheme: str, row: str, acc1: float, note: str | None = None, **metrics: float) -> dict:
    """A result row."""
    quantization = {
        "scheme": scheme,
        "row": row,
        "registers": row == "registers",
        "note": note,
        "examples": 816,
        "cost": 1e6,
    }
    return {
        "dataset": "emoji", "model": "small <b>", "task": "zeroshot_classification",
        "metrics": {"acc1": acc1, "acc5": 0.9, **metrics}, "quantization": {**quantization, "versions": {"jax": "1"}},
    }  # fmt: skip


def trial(error: float, start: int = 4, stop: int = 4, delete_count: int = 0, images: int = 1) -> dict:
    """A trial of a search."""
    numbers = {"start": start, "stop": stop, "copies": 2.5, "delete_block": 5, "delete_count": delete_count}
    return {"numbers": {**numbers, "num_registers": 1}, "images": images, "error": error}


def profile(largest: float) -> dict:
    """Norms of two blocks, whose largest is at the second."""
    patch = [[[0.0, 0.0, 1.0], [0.0, 0.0, largest]]]
    return {
        "groups": ["class", "register", "patch"], "maximum": patch, "median": [[[0.0, 0.0, 1.0]] * 2], "num_images": 8,
        "sink_share": [[0.0] * 5, [0.0, 0.5, 0.0, 0.0, 0.25]], "sinks_per_image": [0.0, 1.5],
    }  # fmt: skip


def rows() -> list[dict]:
    """Result rows of a run."""
    near = {"cosine": 0.98, "relative_error": 0.2, "agreement": 0.95}
    return [
        result("float", "plain", 0.87), result("float", "registers", 0.868, **near), result("w8a8", "plain", 0.694, **near),
        result("w8a8", "registers", 0.8701, **near), result("w8a8", "prefix-only", 0.8701, "the same plan", **near),
        result("w8a8", "token", 0.872, **near),
        result("w4a4", "plain", 0.281, **near), result("w4a4", "prefix-only", 0.816, "the same plan", **near),
    ]  # fmt: skip


def story() -> dict:
    """How they came to be."""
    searched = {
        "sentence": "registers take away 99.7% of the error", "numbers": trial(0, 3, 8)["numbers"], "baseline_error": 0.565,
        "error": 0.00158, "claim": {"spread": 0.0002}, "seconds": 12.0,
        "trials": [trial(0.565, images=4), trial(0.4, delete_count=3), trial(0.2, 3, 8), trial(0.00158, 3, 8, images=4)],
    }  # fmt: skip
    answers = {"name": "twemoji cat", "picture": PIXEL, "class": "cat", "answers": ["cat", "dog <i>", "cat"]}
    rivals = {"token": {"acc1": 0.002, "interval": [-0.005, 0.01]}}
    changed = {
        "rows": ["float", "plain", "registers"], "rivals": rivals, "gain": {"acc1": 0.176, "interval": [0.15, 0.2]},
        "loss": {"acc1": 0.0001, "interval": [-0.01, 0.01]}, "classes": [["cat", 4, 4, 1, 3], ["dog", 10, 9, 9, 7], ["ant", 2, 1, 0, 2]],
        "flips": {"counts": [200, 3], "shown": [answers]},
    }  # fmt: skip
    changes = {
        "intervals": [{"acc1": [0.84, 0.89], "cosine": [0.97, 0.99]}] * 8, "schemes": {"w8a8": changed},
        "bytes": {"float": 8_200_000, "w8a8": 2_300_000},
    }  # fmt: skip
    patches = {"plain": {"mean": 0.05, "worst": 0.4, "maps": [[[0.1, 0.7], [0, 0]]]}}
    patches["registers"] = {"mean": 0.01, "worst": 0.02, "maps": [[[0.1, 0.2], [0, 0]]]}
    maps = [{"name": "cat", "block": 1, "thumbnail": PIXEL, "plain": [[1, 90], [2, 3]], "registers": [[1, 2], [2, 3]]}]
    return {
        "inspect": {
            "profile": profile(90.0),
            "sensitivity": {"sites": ["qkv", "fc2"], "errors": [[1e-4, 2e-3], [1e-5, 0.11]]},
            "verdict": {
                "findings": [{"sentence": "patch sinks from block 1 on: registers (`regcache search`)"}],
                "sensitive_block": 1,
                "most_sensitive": [1, "fc2"],
            },
        },
        "search": {"w8a8": searched},
        "figures": {
            "scheme": "w8a8",
            "profile": profile(2.0),
            "errors": [[1e-4, 2e-4], [1e-5, 3e-4]],
            "maps": maps,
            "patches": {"pictures": 64, "rows": patches},
        },
        "costs": {"unit": "int8 multiply-adds an image", "of": {"float": [2e6], "w8a8": [1e6, 1.1e6]}},
        "changes": changes,
        "config": {"model": "bundled", "weights": "channel", "expected_acc1": 0.87, "search": {"chunk": 64}},
        "made_with": {"Python": "3.11", "jax": "0.10"},
    }
