"""`python -m regcache_jax.cli`."""

from regcache_jax.cli.main import main

main()
