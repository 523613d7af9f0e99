"""Converters: from a checkpoint in any of the published layouts to a model folder, and back to big_vision's."""

from regcache_jax.converters.check import Difference, check, find_reference
from regcache_jax.converters.conversion import convert, export, read_checkpoint, write

__all__ = ["Difference", "check", "convert", "export", "find_reference", "read_checkpoint", "write"]
