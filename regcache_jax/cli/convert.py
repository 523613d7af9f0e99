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

    columns = ("name", "open_clip", "parameters (M)", "px", "tokens", "published")
    shown, told = [], []
    for row in ROWS:
        open_clip = None if row.open_clip is None else ",".join(row.open_clip)
        counts = [f"{count:.1f}" for count in (row.image_parameters, row.text_parameters) if count is not None]
        image = None if row.spec is None else row.spec.image
        sizes = (None, "not yet") if image is None else (image.image_size, str(image.num_tokens))
        published = None if row.published is None else f"{row.published:.1f}"
        shown.append((row.huggingface, open_clip, " + ".join(counts) or None, *sizes, published))
        told.append(
            {
                "family": row.family,
                "name": row.huggingface,
                "names": row.names,
                "image_parameters": row.image_parameters,
                "text_parameters": row.text_parameters,
                "image_size": sizes[0],
                "tokens": None if image is None else image.num_tokens,
                "published": row.published,
                "not_supported": row.reason or None,
            }
        )
    print_table(
        "Encoders: image + text parameters; published zero-shot (DINOv2: k-NN) top-1 on ImageNet", columns, shown
    )
    for reason in dict.fromkeys(row.reason for row in ROWS if row.reason):
        click.echo(f"not yet: {reason}", err=True)
    write_json(json_file, told)


@click.command()
@click.argument("source")
@click.option("--out", required=True, type=click.Path(), help="Model folder to write; must not exist.")
@click.option("--to", help="SOURCE is a model folder: write it as one file in another library's layout.")
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
    to: str | None,
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

    With --to LAYOUT the way back: SOURCE is a model folder, and a .npz ("big_vision", "big_vision scanned") or .safetensors
    file is written.
    """
    from regcache_jax import converters
    from regcache_jax.models import folder as checkpoints

    if to is not None:
        say(f"{source} -> {converters.write(checkpoints.load(source), to, out)}")
        return
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
