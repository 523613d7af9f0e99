"""A set of embeddings on disk: which files there are, and what the two kinds of JSON in it hold.

set.json                          what all of it was made from and how it is laid out, sealed
partitions/partition_N.json       written last: rows, unreadable pictures, lengths and hashes of partition N's files, sealed
img_emb/img_emb_N.npy             features, as clip-retrieval lays them out
text_emb/text_emb_N.npy           those of captions
metadata/metadata_N.parquet       row i speaks of row i of the features
features/features_N.parquet       or, in place of these three, all in one file
unreadable/unreadable_N.parquet   the pictures that have no row, and why; only where there are any
"""

from __future__ import annotations

from typing import Annotated, Literal

from etils import epath
from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from regcache_jax.core.errors import UserError, shown
from regcache_jax.embedding.options import Features, Format
from regcache_jax.files.bounded import read_json
from regcache_jax.files.identity import fingerprint
from regcache_jax.files.paths import write_json
from regcache_jax.files.places import as_path
from regcache_jax.files.sealed import SEAL, is_sealed, seal

SET = "set.json"
RECEIPTS = "partitions"

Count = Annotated[int, Field(ge=0)]


class Described(TypedDict):
    """What `set.json` holds. `source`: how many parts, and the hash of what tells them apart; `made_from`: model, versions and the rest
    that the rows depend on, by name."""

    format: Format
    dtype: Literal["float32", "float16"]
    features: Features
    captions: bool
    shape: list[Annotated[int, Field(gt=0)]]
    partitions: Annotated[int, Field(gt=0)]
    made_from: dict[str, str]
    sha256: str


class Written(TypedDict):
    """What is there of a whole partition. `files`: relative path -> [bytes, sha256]."""

    rows: Count
    unreadable: Count
    files: dict[str, tuple[Count, str]]


class Receipt(Written):
    """The same on disk, sealed; `set`: what it belongs to."""

    set: str
    sha256: str


class Layout:
    """The names of the files of a set of so many partitions: numbers have equally many digits, so that names sort as numbers do."""

    def __init__(self, folder: epath.PathLike, partitions: int) -> None:
        self.folder, self.partitions = as_path(folder), partitions

    def name(self, kind: str, number: int, suffix: str) -> str:
        """The file of a kind of one partition, below the folder."""
        return f"{kind}/{kind}_{number:0{len(str(self.partitions))}d}{suffix}"

    def receipt(self, number: int) -> epath.Path:
        """Where a partition's receipt lies, or will."""
        return self.folder / RECEIPTS / self._receipt(number)

    def done(self) -> set[int]:
        """The partitions that are whole."""
        there = self.folder / RECEIPTS
        names = {file.name for file in there.iterdir()} if there.is_dir() else set()
        return {number for number in range(self.partitions) if self._receipt(number) in names}

    def _receipt(self, number: int) -> str:
        return f"partition_{number:0{len(str(self.partitions))}d}.json"


def describe(folder: epath.Path, described: dict[str, object]) -> str:
    """Writes `set.json`, or holds what is asked against the one that is there; the short hash that receipts carry. Raises UserError that
    says what differs."""
    own = seal(described)
    if not (folder / SET).exists():
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UserError(f"{shown(folder)} is no set of embeddings and not empty; choose another name")
        write_json(folder / SET, own)
    there: dict[str, object] = dict(description(folder))
    if differing := [name for name in own if name not in (SEAL, "made_from") and own[name] != there.get(name)]:
        told = "; ".join(f"{name} {shown(there.get(name), 60)}, now {shown(own[name], 60)}" for name in differing)
        raise UserError(
            f"{shown(folder)} was begun with other settings: {told}; give those again or choose another name"
        )
    made, now = there["made_from"], own["made_from"]
    assert isinstance(made, dict) and isinstance(now, dict)
    if other := [name for name in sorted({*made, *now}) if made.get(name) != now.get(name)]:
        told = "; ".join(
            f"another {name} ({shown(made.get(name), 40)}, now {shown(now.get(name), 40)})" for name in other
        )
        raise UserError(f"{shown(folder)} was begun with {told}; go on with the same or choose another name")
    return fingerprint(own)


def description(folder: epath.Path) -> Described:
    """What a set says of itself. Raises UserError for what is none, and for one that is not as it was written."""
    if not (folder / SET).exists():
        raise UserError(f"{shown(folder)} is no set of embeddings: it has no {SET}")
    found = read_json(folder / SET, Described)
    if not is_sealed(found):
        raise UserError(f"{shown(folder / SET)} is not as it was written (its hash differs); restore it or embed again")
    return found


def read_receipt(file: epath.Path, belongs_to: str) -> Receipt:
    """A partition's receipt. Raises UserError for one that is not as it was written, or belongs to another set."""
    found = read_json(file, Receipt)
    if not is_sealed(found) or found["set"] != belongs_to:
        raise UserError(f"{shown(file)} is not as it was written, or of another set")
    return found
