"""`regcache models` and `regcache convert`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import click

from regcache_jax.cli.arguments import JsonArgs
from regcache_jax.cli.options import takes
from regcache_jax.cli.screen import print_table, progress, say, tell, write_json
from regcache_jax.core.conversion import Choices
from regcache_jax.core.options import option


@click.command()
@click.argument("words", nargs=-1)
@takes(output=JsonArgs)
def models(words: tuple[str, ...], output: JsonArgs) -> None:
    """List the encoders known by name, or those with WORDS.

    A row is shown where all WORDS occur in its family or its names, whatever the case."""
    from regcache_jax.core.errors import UserError
    from regcache_jax.encoders.catalog import containing

    rows = containing(words)
    if not rows:
        raise UserError(
            f"no encoder that is known has {' and '.join(words)} in its family or its names; `regcache models` lists all"
        )
    columns = ("family", "name", "open_clip", "parameters (M)", "px", "tokens", "published", "since")
    shown, told = [], []
    for row in rows:
        open_clip = None if row.open_clip is None else ",".join(row.open_clip)
        counts = [f"{count:.1f}" for count in (row.image_parameters, row.text_parameters) if count is not None]
        image = None if row.spec is None else row.spec.image
        sizes = (None, None) if image is None else (image.image_size, image.num_tokens)
        published = None if row.published is None else f"{row.published:.1f}"
        since = row.since if row.supported else "not yet"
        shown.append((row.family, row.huggingface, open_clip, " + ".join(counts) or None, *sizes, published, since))
        told.append(
            {
                "family": row.family,
                "name": row.huggingface,
                "names": row.names,
                "image_parameters": row.image_parameters,
                "text_parameters": row.text_parameters,
                "image_size": sizes[0],
                "tokens": sizes[1],
                "num_classes": None if row.spec is None else row.spec.num_classes,
                "published": row.published,
                "supported": row.supported,
                "since": row.since if row.supported else None,
                "not_supported": row.reason or None,
            }
        )
    print_table(
        "Encoders: image + text parameters; published zero-shot (DINOv2: k-NN) top-1 on ImageNet",
        columns,
        shown,
        spare=("px", "tokens", "published", "parameters (M)", "since", "open_clip"),
    )
    for reason in dict.fromkeys(row.reason for row in rows if row.reason):
        tell(f"not yet: {reason}")
    write_json(output.json, told)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertArgs:
    """What is read, and where it goes."""

    out: str = option("Model folder to write; must not exist.", path="any")
    to: str | None = option("SOURCE is a model folder: write it in another library's layout.", None)
    name: str | None = option("Name in the catalog, where the source does not say what it is.", None)
    tokenizer: str | None = option("Tokenizer file or folder, where the source has none.", None, path="any")
    dtype: Literal["float32", "bfloat16"] = option("What the weights are kept in.", "float32")
    check: bool = option(
        "Run the original in PyTorch too, print the differences, and keep no folder that is not its equal.", False
    )
    dry_run: bool = option("Only read SOURCE, and say what it is.", False)


@click.command()
@click.argument("source")
@takes(chosen=ConvertArgs, choices=Choices, output=JsonArgs)
def convert(source: str, chosen: ConvertArgs, choices: Choices, output: JsonArgs) -> None:
    """Convert a checkpoint into a model folder.

    SOURCE is a Hugging Face id or folder, a .safetensors, .bin, .pt, .pth or .npz file (big_vision, also FILE:img), or
    open_clip:NAME,TAG. Nothing in a checkpoint is executed.

    With --to LAYOUT the way back: SOURCE is a model folder, and a .npz ("big_vision", "big_vision scanned") or .safetensors
    file is written; with --to huggingface a folder that transformers loads, int8 in compressed-tensors' layout; with --to scales
    the calibrated scales, a line of JSON a site; with --to qwix a folder of Qwix's arrays, which
    SOURCE may be as well.
    """
    from regcache_jax import converters
    from regcache_jax.core.errors import UserError
    from regcache_jax.files.paths import refuse_existing, remove
    from regcache_jax.models import description as described
    from regcache_jax.models import folder as checkpoints

    if chosen.to is not None and chosen.dry_run:
        raise click.UsageError("--dry-run reads a checkpoint; it does not go with --to")
    if chosen.to is not None:
        say(f"{source} -> {converters.write(checkpoints.load(source), chosen.to, chosen.out)}")
        return
    if chosen.dry_run:
        from regcache_jax.converters.conversion import read_checkpoint

        refuse_existing(chosen.out)
        if converters.is_qwix(source):
            say(f"{source}: {converters.read_qwix(source).spec.name}, qwix; {chosen.out} would be written")
            return
        with progress(f"reading {source}"):
            found = read_checkpoint(source, name=chosen.name, dtype=chosen.dtype, choices=choices)
        for note in found.notes:
            say(f"note: {note}")
        say(f"{source}: {found.encoder.spec.name}, {found.format.name}; {chosen.out} would be written")
        return
    if chosen.check:
        converters.find_reference(source)  # fails before anything is written
    with progress(f"converting {source}"):
        folder = converters.convert(
            source, chosen.out,
            name=chosen.name, tokenizer=None if chosen.tokenizer is None else Path(chosen.tokenizer), dtype=chosen.dtype,
            **dataclasses.asdict(choices),
        )  # fmt: skip
    for note in described.read_description(folder).get("notes", ()):
        say(f"note: {note}")
    if chosen.check:
        with progress("comparing with PyTorch"):
            rows = converters.check(source, checkpoints.load(folder))
        columns = ("what", "largest difference", "of the largest value", "ratio of norms")
        shown = [(row.what, *(f"{number:.1e}" for number in (row.largest, row.worst, row.typical))) for row in rows]
        print_table("Against PyTorch, float32", columns, shown)
        write_json(output.json, [dataclasses.asdict(row) for row in rows])
        try:
            converters.refuse_differences(rows, chosen.dtype)
        except UserError as fault:
            remove(folder)
            raise UserError(f"{fault}; {folder} is removed") from None
    say(f"{source} -> {folder}")
