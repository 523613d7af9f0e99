"""One partition on its way: its rows as they come, then its files, each written whole, and last its receipt."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from regcache_jax.core.errors import UserError
from regcache_jax.data.batches import Missing, threads
from regcache_jax.data.dataset import Dataset
from regcache_jax.embedding.claims import Claim
from regcache_jax.embedding.layout import Described, Layout, Written
from regcache_jax.embedding.spool import Spool, parquet_bytes
from regcache_jax.files.identity import sha256
from regcache_jax.files.paths import write_json, write_whole
from regcache_jax.files.sealed import seal

TOGETHER = 32
"""Captions that a thread reads as one piece: most lie in memory, and cost less than the piece."""

EncodeTexts = Callable[[list[str]], Float[np.ndarray, "n E"]]


class Captions(NamedTuple):
    """The first caption of every picture (None: none), and what is wrong with those that cannot be read, by place."""

    texts: list[str | None]
    faults: dict[int, str]


def read_captions(dataset: Dataset, needed: bool) -> Captions:
    """Reads them. `needed`: a picture without one has a fault too."""

    def read(place: int) -> tuple[str | None, str | None]:
        try:
            found = dataset.captions(place)
        except UserError as error:
            return None, str(error)
        missing = f"{dataset.name_of(place)} has no caption" if needed and not found else None
        return (found[0] if found else None), missing

    def read_some(first: int) -> list[tuple[str | None, str | None]]:
        return [read(place) for place in range(first, min(first + TOGETHER, len(dataset)))]

    with ThreadPoolExecutor(threads()) as pool:
        found = list(itertools.chain.from_iterable(pool.map(read_some, range(0, len(dataset), TOGETHER))))
    return Captions(
        [text for text, _ in found], {place: fault for place, (_, fault) in enumerate(found) if fault is not None}
    )


class Unreadable(Missing):
    """Unreadable pictures, up to a share of a partition."""

    def __init__(self, share: float, count: int) -> None:
        super().__init__(int(np.ceil(share * count)))
        self._told = f"of {count} pictures of a partition (--allow-unreadable {share:g})"

    def add(self, place: int, message: str) -> None:
        """Notes a picture. Raises UserError when there are too many."""
        try:
            super().add(place, message)
        except UserError as error:
            raise UserError(f"{self._told} {error}") from None


class Partition:
    """A claimed partition. `left`: batches of it that are still to come; `began`: when it was claimed."""

    def __init__(self, claim: Claim, dataset: Dataset, described: Described, allowed: float, batch_size: int) -> None:
        self.claim, self.dataset, self._described = claim, dataset, described
        self.began = time.monotonic()
        self.captions = read_captions(dataset, described["captions"])
        self.missing = Unreadable(allowed, len(dataset))
        for place, fault in self.captions.faults.items():
            self.missing.add(place, fault)
        self.indices = [place for place in range(len(dataset)) if place not in self.captions.faults]
        self.left = -(-len(self.indices) // batch_size)
        self._places: list[int] = []
        self._spool = Spool(described["shape"], described["dtype"])

    def add(self, features: Float[np.ndarray, "n *R"], places: Int[np.ndarray, "n"]) -> None:
        """Takes the rows of the next batch. Raises UserError for a feature that its dtype does not hold."""
        with np.errstate(over="ignore"):
            narrow = features.astype(self._described["dtype"])
        if not (fits := np.isfinite(narrow).reshape(len(narrow), -1).all(axis=1)).all():
            name = self.dataset.name_of(int(places[np.argmin(fits)]))
            raise UserError(f"{name}: a feature is beyond what float16 holds; embed with --dtype float32")
        self._spool.add(narrow)
        self._places += places.tolist()
        self.left -= 1

    def write(self, layout: Layout, belongs_to: str, encode_texts: EncodeTexts | None) -> Written:
        """Writes its files and lets go of it."""
        files: dict[str, tuple[int, str]] = {}
        for name, content in self._files(layout, encode_texts).items():
            write_whole(layout.folder / name, content)
            files[name] = len(content), sha256(content)
        written = Written(rows=self._spool.rows, unreadable=len(self.missing.faults), files=files)
        write_json(layout.receipt(self.claim.number), seal({"set": belongs_to, **written}))
        self._spool.close()
        self.claim.let_go.close()
        return written

    def _files(self, layout: Layout, encode_texts: EncodeTexts | None) -> dict[str, mmap.mmap]:
        """The content of each file, by its name; files without rows are none."""
        number = self.claim.number
        files: dict[str, mmap.mmap] = {}
        if self.missing.faults:
            places = sorted(self.missing.faults)
            listed: dict[str, Sequence[object]] = {
                "image_path": [self.dataset.name_of(place) for place in places],
                "error": [self.missing.faults[place] for place in places],
            }
            files[layout.name("unreadable", number, ".parquet")] = parquet_bytes(listed, {})
        if not self._places:
            return files
        texts = [self.captions.texts[place] for place in self._places]
        columns: dict[str, Sequence[object]] = {
            "image_path": [self.dataset.name_of(place) for place in self._places],
            "caption": texts,
        }
        words = None
        if encode_texts is not None:
            words = Spool(self._described["shape"], self._described["dtype"])
            words.add(encode_texts([text or "" for text in texts]))
        if self._described["format"] == "parquet":
            features = {"embedding": self._spool.array()}
            if words is not None:
                features["text_embedding"] = words.array()
            files[layout.name("features", number, ".parquet")] = parquet_bytes(columns, features)
            return files
        files[layout.name("img_emb", number, ".npy")] = self._spool.content()
        if words is not None:
            files[layout.name("text_emb", number, ".npy")] = words.content()
        files[layout.name("metadata", number, ".parquet")] = parquet_bytes(columns, {})
        return files

    def give_up(self) -> None:
        """Lets go of it unwritten."""
        self._spool.close()
        with contextlib.suppress(OSError):
            self.claim.let_go.close()
