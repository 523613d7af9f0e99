"""`regcache embed`: features of pictures and texts, to keep."""

from __future__ import annotations

import dataclasses

import click

from regcache_jax.cli.arguments import ParallelArgs, TestedData
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import progress, say, tell
from regcache_jax.core.options import like, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedArgs(ParallelArgs):
    """What is read, and where the features go."""

    images: str = option("Folder of pictures, read with subfolders.", path="folder")
    texts: str | None = option("Text file, one text a line.", None, path="file")
    out: str = option("File to write (.npz); must not exist.", path="file")
    batch_size: int = like(TestedData, "batch_size")
    strict: bool = option("Stop at the first picture that cannot be read.", False)


@click.command()
@click.argument("model", type=click.Path())
@takes(chosen=EmbedArgs)
def embed(model: str, chosen: EmbedArgs) -> None:
    """Write the features of a folder of pictures, and of texts.

    The file holds `features` [n, D] float32, `paths`, with --texts `text_features`, and where texts of the same name lie beside
    pictures `captions` (JSON: a list of texts a picture). A picture that cannot be read is reported and left out; the exit status is
    then 1.
    """
    from regcache_jax.core.errors import UserError
    from regcache_jax.data import open_dataset
    from regcache_jax.data.folders import lines
    from regcache_jax.evaluation.embedding import embed_pictures, embed_texts, write_embeddings
    from regcache_jax.files.bounded import read_text
    from regcache_jax.files.paths import refuse_existing
    from regcache_jax.models import folder as checkpoints

    refuse_existing(chosen.out)
    loaded = checkpoints.load(model)
    data = open_dataset("folder", chosen.images)
    for note in data.notes:
        tell(note)
    text_features = None
    if chosen.texts is not None:
        text_features = embed_texts(loaded, list(lines(read_text(chosen.texts))))
    with progress(f"embedding {len(data)} pictures", len(data)) as update:
        found = embed_pictures(
            loaded, data, chosen.batch_size, strict=chosen.strict, parallel=chosen.parallel, progress=update
        )
    write_embeddings(chosen.out, found, text_features)
    for message in found.unreadable:
        tell(f"regcache: {message}")
    say(f"{len(found.paths)} pictures -> {chosen.out}")
    if found.unreadable:
        raise UserError(f"{len(found.unreadable)} of {len(data)} pictures could not be read")
