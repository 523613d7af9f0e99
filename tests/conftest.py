"""What every test runs under: eight simulated CPU devices, strict dtype promotion, annotated shapes checked as they run."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from jaxtyping import install_import_hook

install_import_hook("regcache_jax", "beartype.beartype")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
