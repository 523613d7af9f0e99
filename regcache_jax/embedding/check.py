"""Whether a set of embeddings is whole and as it was written, and one file made of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Float

from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError, shown
from regcache_jax.embedding.layout import Described, Layout, Receipt, description, read_receipt
from regcache_jax.files.bounded import open_in_pieces
from regcache_jax.files.identity import file_hash, fingerprint
from regcache_jax.files.places import as_path

THREADS = 4
FAULTS_SHOWN = 6


class Checked(NamedTuple):
    """A set that is whole: what it says of itself, and its receipts in order."""

    layout: Layout
    described: Described
    receipts: list[Receipt]

    @property
    def rows(self) -> int:
        """Pictures with rows."""
        return sum(receipt["rows"] for receipt in self.receipts)

    @property
    def unreadable(self) -> int:
        """Pictures without."""
        return sum(receipt["unreadable"] for receipt in self.receipts)


def check_set(folder: epath.PathLike, progress: Callable[[int], None] | None = None) -> Checked:
    """Reads every file of a set and compares lengths, hashes and numbers of rows with what its partition's receipt says. `progress` hears
    of partitions. Raises UserError that says what is missing or differs, and how to make it again."""
    described = description(as_path(folder))
    layout, belongs_to = Layout(folder, described["partitions"]), fingerprint(described)
    missing = sorted(set(range(layout.partitions)) - layout.done())
    if missing:
        raise UserError(
            f"{shown(folder)} is not finished: missing are {len(missing):,} of {counted(layout.partitions, 'partition')}, the first is "
            f"{missing[0]}; embed again with the same settings to go on"
        )

    def check(number: int) -> tuple[Receipt | None, str | None]:
        try:
            receipt = read_receipt(layout.receipt(number), belongs_to)
            return receipt, _fault(layout, described, number, receipt)
        except UserError as error:
            return None, str(error)

    receipts, faults = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        for number, (receipt, fault) in enumerate(pool.map(check, range(layout.partitions))):
            if receipt is None or fault is not None:
                faults.append(f"{fault} (remove {layout.receipt(number).name})")
            else:
                receipts.append(receipt)
            if progress is not None:
                progress(1)
    if faults:
        more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise UserError(
            f"{shown(folder)}: damaged are {len(faults):,} of {counted(layout.partitions, 'partition')}: "
            f"{'; '.join(faults[:FAULTS_SHOWN])}{more}. Remove those receipts and embed again with the same settings"
        )
    return Checked(layout, described, receipts)


def _fault(layout: Layout, described: Described, number: int, receipt: Receipt) -> str | None:
    """What is wrong with the files of a partition."""
    for name, (size, digest) in receipt["files"].items():
        file = layout.folder / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().length != size or file_hash(file) != digest:
            return f"{name} is not as it was written"
        if (rows := _rows(file)) != (wanted := receipt["unreadable" if name.startswith("unreadable/") else "rows"]):
            return f"{name} holds {counted(rows, 'row')}, not {wanted}"
    expected = set(_feature_files(layout, described, number)) if receipt["rows"] else set()
    if lacking := expected - set(receipt["files"]):
        return f"partition {number} has no {', '.join(sorted(lacking))}"
    return None


def _rows(file: epath.Path) -> int:
    with open_in_pieces(file) as raw:
        if file.suffix == ".npy":
            np.lib.format.read_magic(raw)
            return np.lib.format.read_array_header_1_0(raw)[0][0]
        return pq.ParquetFile(raw).metadata.num_rows


def _feature_files(layout: Layout, described: Described, number: int) -> list[str]:
    """The files of a partition that has rows: features, metadata, and those of captions."""
    if described["format"] == "parquet":
        return [layout.name("features", number, ".parquet")]
    kinds = {"img_emb": ".npy", "metadata": ".parquet"} | ({"text_emb": ".npy"} if described["captions"] else {})
    return [layout.name(kind, number, suffix) for kind, suffix in kinds.items()]


def partitions(checked: Checked) -> Iterator[tuple[Float[np.ndarray, "n *R"], pa.Table]]:
    """Features and metadata (`image_path`, `caption`) of one partition after the other."""
    layout, described = checked.layout, checked.described
    for number, receipt in enumerate(checked.receipts):
        if not receipt["rows"]:
            continue
        first = layout.folder / _feature_files(layout, described, number)[0]
        if described["format"] == "parquet":
            with open_in_pieces(first) as raw:
                table = pq.ParquetFile(raw).read()
            flat = table.column("embedding").combine_chunks().values.to_numpy(zero_copy_only=False)
            yield flat.reshape(-1, *described["shape"]), table.select(["image_path", "caption"])
            continue
        with open_in_pieces(first) as raw:
            features = np.load(io.BytesIO(raw.read()) if "://" in str(first) else raw, allow_pickle=False)
        with open_in_pieces(layout.folder / layout.name("metadata", number, ".parquet")) as raw:
            yield features, pq.ParquetFile(raw).read()
