"""What may be asked of a set of embeddings."""

from __future__ import annotations

import dataclasses
from typing import Literal

from regcache_jax.core.errors import UserError
from regcache_jax.core.options import check_fields, option

Features = Literal["pooled", "class", "patches"]
Format = Literal["clip-retrieval", "parquet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetOptions:
    """What is written of every picture, and how. Raises UserError for what is out of bounds."""

    features: Features = option(
        "The feature that tasks use, the class token after the final norm, or all patch tokens.", "pooled"
    )
    block: int | None = option(
        "Of patches: those that leave this block (0: the first; -1: the last), not normed; by default the last, normed.",
        None,
    )
    format: Format = option(
        "Files as clip-retrieval lays them out, or parquet with a column of fixed-size lists.", "clip-retrieval"
    )
    dtype: Literal["float32", "float16"] = option("Of the features that are written.", "float32")
    captions: bool = option("Features of every picture's first caption too.", False)
    partition: int = option("Pictures a partition, where it is not a shard.", 10_000, unit="pictures", least=1)
    allow_unreadable: float = option(
        "Share of a partition's pictures that may be unreadable: they are listed, with why; one more ends the run.",
        0.01, unit="share", least=0, most=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)
        if self.block is not None and self.features != "patches":
            raise UserError("--block is of patch features; give --features patches")
