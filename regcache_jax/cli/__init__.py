"""The `regcache` command. Commands import what they need when they run, so that `--help` answers at once."""

from regcache_jax.cli.main import main

__all__ = ["main"]
