"""`regcache models` and `regcache convert`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from regcache_jax.cli.options import json_option
from regcache_jax.cli.screen import print_table, progress, say, write_json


@click.command()
@json_option
def models(json_file: str | None) -> None:
    """List the encoders that are known by name."""
    from regcache_jax.encoders.catalog import ROWS

    columns = ("family", "name", "open_clip", "image M", "text M", "px", "tokens", "published", "note")
    rows = []
    for row in ROWS:
        image = None if row.spec is None else row.spec.image
        sizes = (None, None) if image is None else (image.image_size, image.num_tokens)
        open_clip = None if row.open_clip is None else ",".join(row.open_clip)
        parameters = (row.image_parameters, row.text_parameters)
        rows.append((row.family, row.huggingface, open_clip, *parameters, *sizes, row.published, row.reason or None))
    print_table("Encoders", columns, rows)
    write_json(json_file, [dict(zip(columns, row, strict=True)) for row in rows])


@click.command()
@click.argument("source")
@click.option("--out", required=True, type=click.Path(), help="Model folder to write; must not exist.")
@click.option("--name", help="Name in the catalog, where the source does not say what it is.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Tokenizer file or folder, where the source has none."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="What the weights are kept in.",
)
@click.option("--activation", help="Replace the activation: gelu, gelu_tanh, quick_gelu.")
@click.option("--interpolation", help="Replace the interpolation of the position table.")
@click.option(
    "--filter", "resize_filter", help="Replace the filter that resizes pictures: bicubic, bilinear, bilinear_tf."
)
@click.option(
    "--image-size", type=click.IntRange(1), help="Take pictures of another size; the positions are resampled."
)
@click.option("--check", is_flag=True, help="Run the original in PyTorch too and print the differences by block.")
@json_option
def convert(
    source: str,
    out: str,
    name: str | None,
    tokenizer: Path | None,
    dtype: str,
    activation: str | None,
    interpolation: str | None,
    resize_filter: str | None,
    image_size: int | None,
    check: bool,
    json_file: str | None,
) -> None:
    """Convert a checkpoint into a model folder.

    SOURCE is a Hugging Face id or folder, a .safetensors, .bin, .pt, .pth or .npz file (big_vision, also FILE:img), or
    open_clip:NAME,TAG. Nothing in a checkpoint is executed.
    """
    from regcache_jax import checkpoints, converters

    if check:
        converters.find_reference(source)  # fails before anything is written
    with progress(f"converting {source}"):
        folder = converters.convert(
            source, out, name=name, tokenizer=tokenizer, dtype=dtype, activation=activation,
            interpolation=interpolation, filter=resize_filter, image_size=image_size,
        )  # fmt: skip
    say(f"{source} -> {folder}")
    if check:
        with progress("comparing with PyTorch"):
            rows = converters.check(source, checkpoints.load(folder))
        columns = ("what", "largest difference", "of the largest value", "ratio of norms")
        shown = [(row.what, *(f"{number:.1e}" for number in (row.largest, row.worst, row.typical))) for row in rows]
        print_table("Against PyTorch, float32", columns, shown)
        write_json(json_file, [dataclasses.asdict(row) for row in rows])
