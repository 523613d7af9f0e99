"""Which files of a checkpoint are its tokenizer's."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from etils import epath

from regcache_jax.core.errors import UserError
from regcache_jax.core.spec import EncoderSpec
from regcache_jax.encoders import tokenizers
from regcache_jax.files.places import as_path


def find_tokenizer(spec: EncoderSpec, given: Path | None, folder: Path) -> list[epath.Path]:
    """The tokenizer's files: those given, else those beside the weights, if there are any.

    Raises UserError for given ones that this encoder's text cannot be read with."""
    if spec.tokenization is None:
        return []
    kind = spec.tokenization.kind
    if given is None:
        return tokenizers.find_files(kind, folder)
    alone = [patterns[0] for patterns in tokenizers.FILES[kind] if len(patterns) == 1]
    is_one = given.is_file() and any(fnmatch.fnmatchcase(given.name, pattern) for pattern in alone)
    files = [as_path(given)] if is_one else tokenizers.find_files(kind, given)
    if not files:
        wanted = tokenizers.expected_files(kind)
        raise UserError(f"--tokenizer should be {wanted}, or a folder that holds it, got {given}")
    return files
