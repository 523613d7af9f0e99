"""Converters: from a checkpoint in any of the published layouts to a model folder, and back to big_vision's."""

from regcache_jax.converters.check import Difference, check, refuse_differences
from regcache_jax.converters.conversion import convert, read_checkpoint, register
from regcache_jax.converters.engine import Rule
from regcache_jax.converters.formats import Format, Given
from regcache_jax.converters.qwix_tree import is_qwix, read_qwix
from regcache_jax.converters.reference import find_reference
from regcache_jax.converters.writing import export, write

__all__ = [
    "Difference",
    "Format",
    "Given",
    "Rule",
    "check",
    "convert",
    "export",
    "find_reference",
    "is_qwix",
    "read_checkpoint",
    "read_qwix",
    "refuse_differences",
    "register",
    "write",
]
