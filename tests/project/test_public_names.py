import doctest
import importlib
import subprocess
import sys

import pytest

import regcache_jax as rc


def test_every_public_name_is_there_and_documented():
    for name in rc.__all__:
        assert getattr(rc, name).__doc__, name
    assert set(dir(rc)) == set(rc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'gremlins'"):
        rc.gremlins  # noqa: B018


def test_importing_the_package_imports_neither_jax_nor_anything_heavy():
    script = "import sys, regcache_jax; print(sorted({'jax', 'flax', 'orbax'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["registers.inspect", "registers.search.search"])
def test_examples_in_docstrings_give_what_they_say(module):
    results = doctest.testmod(importlib.import_module(f"regcache_jax.{module}"))
    assert results.attempted > 0 and results.failed == 0
