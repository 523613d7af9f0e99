"""Every name that is imported from the library is there, wherever the import stands: most stand inside functions, and mypy looks at the
package alone, not at benchmarks, scripts and tests."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("regcache_jax", "configs", "converters", "benchmarks", "scripts", "tests")


def missing(module: str, names: list[str]) -> list[str]:
    found = importlib.import_module(module)
    folder = hasattr(found, "__path__")
    return [
        f"{module}.{name}"
        for name in names
        if not hasattr(found, name) and not (folder and importlib.util.find_spec(f"{module}.{name}"))
    ]


def test_no_private_name_of_jax_is_used():
    private = "jax._src"
    assert not [path for folder in FOLDERS[:4] for path in (ROOT / folder).rglob("*.py") if private in path.read_text()]


def test_every_imported_name_of_the_library_exists():
    wrong = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "regcache_jax":
                names = missing(node.module, [alias.name for alias in node.names])
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in names]
    assert not wrong, wrong


def test_every_path_of_a_user_comes_by_one_way():
    """Whatever opens paths of its own meets unknown stores with a traceback of epath's."""
    library = [path for folder in FOLDERS[:3] for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in library if "epath.Path(" in path.read_text()] == ["places.py"]
