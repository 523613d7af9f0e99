"""What every test runs under: eight simulated CPU devices, strict dtype promotion, annotated shapes checked as they run."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from jaxtyping import install_import_hook

# The numeric tower of PEP 484: an int is welcome where a float is announced, as type checkers have it.
install_import_hook("regcache_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    """Compiled programs of a finished file are dropped: kept for the whole run they take 8 GiB a worker."""
    yield
    jax.clear_caches()
