"""`regcache calibrate` and `regcache calibration`: what passes an encoder's sites, kept in a file, and that file looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from regcache_jax.cli.options import data_options, json_option, read_data, read_images, read_plan
from regcache_jax.cli.screen import digits, print_table, progress, say, write_json

if TYPE_CHECKING:
    from regcache_jax.core.scheme import Estimator
    from regcache_jax.quantization.calibration import Calibration


@click.command()
@click.argument("model", type=click.Path())
@data_options("train", 512)
@click.option("--registers", type=click.Path(dir_okay=False), help="Plan to have in place; it changes the ranges.")
@click.option("--groups", is_flag=True, help="Count class token, trained registers and patches apart (group scales).")
@click.option("--integer-attention", is_flag=True, help="Count queries, keys and values too.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="File to write; must not exist.")
def calibrate(
    model: str,
    dataset: str,
    data_dir: str | None,
    split: str | None,
    limit: int | None,
    batch_size: int,
    registers: str | None,
    groups: bool,
    integer_attention: bool,
    out: str,
) -> None:
    """Count what passes every site of MODEL, and keep it in a file.

    `regcache quantize --calibration FILE` then needs no pictures, `regcache calibration FILE` shows what is in it.
    """
    from regcache_jax.core.scheme import INPUTS, SITES
    from regcache_jax.files.paths import refuse_existing
    from regcache_jax.models import folder as checkpoints
    from regcache_jax.quantization.calibration import observe
    from regcache_jax.quantization.quantize import in_batches

    refuse_existing(out)
    loaded = checkpoints.load(model)
    plan = read_plan(registers, loaded)
    encoder = loaded.encoder if plan is None else loaded.encoder.with_plan(plan)
    images = read_images(loaded, read_data(dataset, data_dir, split, limit, "train"))
    with progress("calibrating"):
        batches = in_batches(images, batch_size, fill=False)
        found = observe(encoder, batches, groups=groups, inputs=INPUTS if integer_attention else SITES)
    found.belonging_to(encoder).save(out)
    say(f"{model} -> {out}: {found.num_images} pictures, {'with' if registers else 'no'} registers")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--bits", type=click.IntRange(2, 8), default=8, show_default=True, help="Bits of the activations.")
@json_option
def calibration(file: str, bits: int, json_file: str | None) -> None:
    """Show a calibration FILE: ranges by block, site and estimator."""
    from regcache_jax.quantization.calibration import Calibration

    found = Calibration.load(file)
    columns, rows = ranges_of(found, bits)
    shown = [(*row[:3], *map(digits, row[3:])) for row in rows]
    print_table(f"{file}: {found.num_images} pictures, {bits} bits", columns, shown)
    sites = [dict(zip(columns, row, strict=True)) for row in rows]
    write_json(json_file, {"images": found.num_images, "groups": found.groups, "bits": bits, "sites": sites})


def ranges_of(found: Calibration, bits: int) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows: extremes, and the largest magnitude that each estimator keeps, a block, site and token group."""
    import numpy as np

    from regcache_jax.core.scheme import Scheme
    from regcache_jax.quantization.calibration import site_bounds

    estimators: tuple[Estimator, ...] = ("absmax", "percentile", "mse", "entropy")
    schemes = [Scheme(activation_bits=bits, estimator=each) for each in estimators]
    rows: list[tuple[Any, ...]] = []
    for site, histogram in found.sites.items():
        ends = [site_bounds(histogram, scheme, site)[1] for scheme in schemes]
        for block, group in np.argwhere(histogram.counts.any(axis=2)):  # an encoder may have no class token
            who = ("class token", "registers", "patches")[group] if histogram.lower.shape[1] == 3 else "all"
            extremes = (histogram.lower[block, group], histogram.upper[block, group])
            kept = [end[block, group] for end in ends]
            rows.append((int(block), site, who, *map(float, [*extremes, *kept])))
    rows.sort(key=lambda row: row[0])  # stable: block after block, sites as they were counted
    return ("block", "site", "tokens", "lowest", "highest", *estimators), rows
