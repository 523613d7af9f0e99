"""Zip archives, which NumPy and torch write: opened where their directory is sound, their members read whole and with their CRC."""

from __future__ import annotations

import weakref
import zipfile
from pathlib import Path

from regcache_jax.converters.stored import LARGEST_FILE, MOST_TENSORS, in_one_line

from regcache_jax.core.errors import UserError, shown
from regcache_jax.files.bounded import length, open_regular

_MOST_MEMBERS = 4 * MOST_TENSORS
_LARGEST_FACTOR = 100  # weights hardly compress; a factor of 100 is met by bombs and by zeros only


class Archive:
    """The members of a zip archive, by name.

    Raises UserError for one whose directory is damaged, names a member twice or a compression other than none and deflate, or whose
    contents are larger than a checkpoint of its size can hold (a zip bomb's are)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with in_one_line(path, "is truncated or no archive"):
            file = open_regular(path, LARGEST_FILE)
            weakref.finalize(self, file.close)
            packed = length(file)
            self._zip = zipfile.ZipFile(file)
            members = self._zip.infolist()
        if len(members) > _MOST_MEMBERS:
            raise UserError(f"{path} has {len(members):,} members, at most {_MOST_MEMBERS:,} are read")
        self.members = {info.filename: info for info in members}
        if len(self.members) < len(members):
            raise UserError(f"{path} is damaged: {len(members)} members have only {len(self.members)} names")
        for info in members:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                raise UserError(
                    f"{path}: {shown(info.filename)} is encrypted or compressed otherwise than by deflate (number {info.compress_type})"
                )
        unpacked = sum(info.file_size for info in members)
        if unpacked > _LARGEST_FACTOR * packed:
            raise UserError(
                f"{path} would unpack from {packed} to {unpacked} bytes; no checkpoint compresses like that"
            )

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The whole of a member, or its first `limit` bytes; of a whole one the CRC is compared."""
        with in_one_line(f"{self.path}: {shown(name)}", "cannot be read"), self._zip.open(self.members[name]) as member:
            if limit is not None:
                return member.read(limit)
            content = member.read()  # of the size that the directory says, which the constructor has bounded
            if len(content) != self.members[name].file_size:
                raise UserError(f"holds {len(content)} bytes, the directory says {self.members[name].file_size}")
            return content
