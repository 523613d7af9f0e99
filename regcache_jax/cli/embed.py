"""`regcache embed`: features of pictures and texts, to keep."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from regcache_jax.cli.arguments import DataArgs, ParallelArgs, Processes, TestedData, read_texts
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import foretell, progress, say, tell
from regcache_jax.core.counted import counted
from regcache_jax.core.errors import UserError
from regcache_jax.core.options import like, option
from regcache_jax.embedding.options import SetOptions
from regcache_jax.files.events import Events, events
from regcache_jax.files.progress import moving

if TYPE_CHECKING:
    from regcache_jax.data.dataset import Dataset
    from regcache_jax.data.parts import Part

MANY = 200
"""Pictures; of fewer nothing is foretold, as timing a block takes a while too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedArgs(ParallelArgs, Processes):
    """What is read, and where the features go."""

    images: str | None = option(
        "A folder with its subfolders, or files: .tar shards, .parquet, .array_record, a .txt with a path a line; "
        "{000..123}, {a,b} and * name several.", None,
    )  # fmt: skip
    dataset: str | None = like(
        DataArgs, "dataset", default=None, help="Or a dataset by name, as the other commands take it."
    )
    data_dir: str | None = like(DataArgs, "data_dir")
    split: str | None = like(TestedData, "split")
    limit: int | None = like(DataArgs, "limit")
    texts: str | None = option("Text file, one text a line; for an .npz.", None, path="file")
    out: str | None = option(
        "An .npz, which must not exist, or a folder of partitions, which is gone on with.", None, path="any"
    )
    batch_size: int = like(TestedData, "batch_size")
    workers: int = option(
        "Processes that decode; 0: threads. For a folder of partitions.", 0, unit="processes", least=0
    )
    events: str | None = option("Also append what happens to FILE, a JSON object a line.", None, path="any")
    strict: bool = option("Stop at the first picture that cannot be read.", False)
    verify: str | None = option("Instead: check a folder of partitions, every file of it.", None, path="folder")
    merge: str | None = option(
        "Instead: check a folder of partitions and write it to --out FILE.npz.", None, path="folder"
    )

    def __post_init__(self) -> None:
        asked = [name for name in ("verify", "merge") if getattr(self, name) is not None]
        sources = [name for name in ("images", "dataset") if getattr(self, name) is not None]
        if len(asked) > 1:
            raise UserError("--verify and --merge exclude each other; --merge verifies as well")
        if asked and sources:
            raise UserError(f"--{asked[0]} stands alone: it reads neither --images nor --dataset")
        if not asked and len(sources) != 1:
            raise UserError("one of --images and --dataset says what is embedded")
        if self.out is None and self.verify is None:
            raise UserError("--out is needed: FILE.npz, or a folder for partitions")
        if self.merge is not None and not self.one_file:
            raise UserError(f"--merge writes an .npz, got --out {self.out}")
        if self.texts is not None and not self.one_file:
            raise UserError("--texts goes into an .npz; a folder of partitions takes --captions")
        if self.events is not None and (asked or self.one_file):
            raise UserError("--events tells of the partitions of a folder; give --out FOLDER")

    @property
    def one_file(self) -> bool:
        """Whether one .npz is written."""
        return self.out is not None and self.out.endswith(".npz")

    def open(self) -> Dataset:
        """The dataset that is named, or a folder of pictures."""
        from regcache_jax.data import open_dataset

        if self.dataset is not None:
            return open_dataset(self.dataset, self.data_dir, self.split, self.limit)
        return open_dataset("folder", self.images, limit=self.limit)

    def parts(self, size: int) -> tuple[Part, ...]:
        """What is named, cut into parts."""
        from regcache_jax.data.parts import parts_of_dataset, parts_of_images

        if self.images is None or self.limit is not None:
            return parts_of_dataset(self.open(), size)
        return parts_of_images(self.images, size)


@click.command()
@click.argument("model", type=click.Path(), required=False)
@takes(chosen=EmbedArgs, kept=SetOptions)
def embed(model: str | None, chosen: EmbedArgs, kept: SetOptions) -> None:
    """Write the features of pictures, and of texts.

    A small folder becomes one file, any number of pictures a folder of partitions.

    FILE.npz holds `features` [n, D] float32, `paths`, with --texts `text_features`, and where texts of the same name lie beside
    pictures `captions` (JSON: a list of texts a picture). A picture that cannot be read is reported and left out; the exit status is
    then 1.

    A folder is laid out as clip-retrieval lays it out. Any number of processes may work on it at once; killed, they go on where they
    stopped (docs/embedding.md).
    """
    if chosen.verify is not None:
        _verify(chosen.verify)
    elif chosen.merge is not None:
        _merge(chosen.merge, str(chosen.out))
    elif model is None:
        raise click.UsageError("MODEL is needed: the folder of an encoder")
    elif chosen.one_file:
        _one_file(model, chosen, kept)
    else:
        with events(chosen.events) as told:
            _partitions(model, chosen, kept, told)


def _verify(folder: str) -> None:
    from regcache_jax.embedding.check import check_set

    with progress(f"reading {folder}") as update:
        checked = check_set(folder, update)
    say(
        f"{folder} is whole: {counted(checked.rows, 'picture')} in {counted(checked.layout.partitions, 'partition')}, "
        f"{checked.unreadable:,} unreadable, every file as it was written"
    )


def _merge(folder: str, out: str) -> None:
    from regcache_jax.embedding.check import check_set
    from regcache_jax.embedding.merge import merge
    from regcache_jax.files.paths import refuse_existing

    refuse_existing(out)
    with progress(f"reading {folder}") as update:
        checked = check_set(folder, update)
        merge(checked, out)
    say(f"{counted(checked.rows, 'picture')} -> {out}")


def _one_file(model: str, chosen: EmbedArgs, kept: SetOptions) -> None:
    from regcache_jax.evaluation.embedding import embed_pictures, embed_texts, write_embeddings
    from regcache_jax.files.paths import refuse_existing
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.studies.pace import Pace

    if kept != SetOptions():
        raise click.UsageError("an .npz holds pooled features in float32; other options are for --out FOLDER")
    assert chosen.out is not None
    refuse_existing(chosen.out)
    loaded = checkpoints.load(model)
    data = chosen.open()
    for note in data.notes:
        tell(note)
    text_features = None
    if chosen.texts is not None:
        text_features = embed_texts(loaded, read_texts(chosen.texts))
    if len(data) >= MANY:
        foretell(Pace(loaded.encoder).passes(len(data)), "with --out FOLDER what is done is kept, and more may join")
    with progress(f"embedding {counted(len(data), 'picture')}", len(data)) as update:
        found = embed_pictures(
            loaded, data, chosen.batch_size, strict=chosen.strict, parallel=chosen.parallel, progress=update
        )
    write_embeddings(chosen.out, found, text_features)
    for message in found.unreadable:
        tell(f"regcache: {message}")
    say(f"{counted(len(found.paths), 'picture')} -> {chosen.out}")
    if found.unreadable:
        raise UserError(f"{len(found.unreadable)} of {counted(len(data), 'picture')} could not be read")


def _partitions(model: str, chosen: EmbedArgs, kept: SetOptions, told: Events) -> None:
    chosen.join()

    from regcache_jax.embedding.embed import Running, embed_set
    from regcache_jax.files.places import as_path
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.studies.pace import Pace

    assert chosen.out is not None
    if as_path(chosen.out).is_file():
        raise UserError(f"{chosen.out} exists already, as a file; features go into a new FILE.npz or into a folder")
    loaded = checkpoints.load(model)
    parts = chosen.parts(kept.partition)
    kept = dataclasses.replace(kept, allow_unreadable=0.0) if chosen.strict else kept
    known = sum(part.pictures or 0 for part in parts)
    if known >= MANY:
        foretell(
            Pace(loaded.encoder).passes(known),
            "for all, by this process alone; what is done is kept, and more may join",
        )
    with progress(f"embedding into {chosen.out}, {counted(len(parts), 'partition')}") as update:
        running = Running(chosen.batch_size, chosen.parallel, chosen.workers, tell, moving(update), told)
        done = embed_set(loaded, parts, chosen.out, kept, running)
    unreadable = f", {done.unreadable:,} unreadable" if done.unreadable else ""
    say(
        f"{counted(done.pictures, 'picture')} here{unreadable}; {chosen.out} is whole: {counted(done.partitions, 'partition')}"
    )
